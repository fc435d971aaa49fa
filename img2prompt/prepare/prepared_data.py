"""The finished folders of a data set. Opening them needs no Ray."""

from dataclasses import dataclass

from img2prompt.artifact import Artifact
from img2prompt.workspace import Workspace


@dataclass(frozen=True)
class PreparedData:
    """The finished folders of a data set, in the order of the stages."""

    index: Artifact
    clean: Artifact
    targets: Artifact
    groups: Artifact
    shards: Artifact

    @property
    def encoder(self) -> str:
        """Folder of the prompt encoder of the targets; empty: its installed package."""
        return self.targets.config["encoder"]

    @classmethod
    def load(cls, out: str) -> "PreparedData":
        """Open the data set under `out`.

        Raises:
            UserError: a folder is absent or unfinished, or was made from another input.
        """
        workspace = Workspace(out)
        prepared = cls(
            index=workspace.open_index(),
            clean=workspace.open_clean(),
            targets=workspace.open_targets(),
            groups=workspace.open_groups(),
            shards=workspace.open_shards(),
        )
        prepared.clean.require_input("index", prepared.index)
        prepared.targets.require_input("clean", prepared.clean)
        prepared.groups.require_input("targets", prepared.targets)
        prepared.shards.require_input("groups", prepared.groups)
        return prepared
