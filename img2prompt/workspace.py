"""Every folder under `--out`, by name: the only file that joins them to a path.

    out/
      index/ clean/ targets/ groups/ shards/ features/     the data set
      runs/<name>/                                          training runs (`RunFolder`)
      runs/<grid>/<head>/                                   heads that learned together
      runs/<blend>/                                         weights of several predictors
      <evaluation>/ <predictions>/ <export>/                results, named by their configs
      <search>/trials/<trial>/                              a search (`SearchFolder`)
      <generated>/pictures/                                 generated pictures (`GeneratedFolder`)
      prepare.json  config.json  metrics.json  samples/     what the demo chain leaves
      tower/                                                a tower trained from random weights

Attributes and methods return URIs; `open_*` return the finished artifacts. A stage still takes the
URI of its output, so it runs in any folder.
"""

from dataclasses import dataclass

from img2prompt.artifact import CONFIG, METRICS, Artifact, read_manifest
from img2prompt.errors import UserError
from img2prompt.storage import absolute, join

_OWN = (
    *("index", "clean", "targets", "groups", "shards", "features", "runs", "samples", "tower"),
    *("prepare.json", CONFIG, METRICS),
)
"""Names under `--out` that no result may take."""

BUILT_IN_PREDICTORS = (NEIGHBOURS, MEAN) = ("neighbours", "mean")
"""Predictors that need no training run, so no run may have their names."""

BLEND_WEIGHTS = "blend.safetensors"
"""File of a blend in its folder under `runs/`."""
CONFIDENCE_HEAD = "confidence.safetensors"
"""File of a calibrated predictor in its folder under `runs/`."""


class Stage:
    """Stage names in manifests."""

    INDEX = "index"
    PORTIONS = "listed"
    CLEAN = "clean"
    TARGETS = "targets"
    GROUPS = "groups"
    SHARDS = "shards"
    FEATURES = "features"
    TRAIN = "train"
    HEADS = "heads"
    SEARCH = "search"
    EVALUATION = "evaluation"
    PREDICTIONS = "predictions"
    EXPORT = "export"
    GENERATED = "generated"
    BLEND = "blend"
    CALIBRATION = "calibration"


@dataclass(frozen=True)
class Workspace:
    """The folder that `--out` names, local or a URI."""

    out: str

    @property
    def index(self) -> str:
        return join(self.out, "index")

    @property
    def clean(self) -> str:
        return join(self.out, "clean")

    @property
    def targets(self) -> str:
        return join(self.out, "targets")

    @property
    def groups(self) -> str:
        return join(self.out, "groups")

    @property
    def shards(self) -> str:
        return join(self.out, "shards")

    @property
    def features(self) -> str:
        return join(self.out, "features")

    @property
    def runs(self) -> str:
        return join(self.out, "runs")

    @property
    def tower(self) -> str:
        """Checkpoint of a tower that `jobs/tower.py` trained."""
        return join(self.out, "tower")

    @property
    def samples(self) -> str:
        """Test pictures that the demo chain writes out and predicts."""
        return join(self.out, "samples")

    @property
    def prepare_config(self) -> str:
        return join(self.out, "prepare.json")

    @property
    def config(self) -> str:
        """Config of the demo chain."""
        return join(self.out, CONFIG)

    @property
    def metrics(self) -> str:
        """Scores of the demo chain."""
        return join(self.out, METRICS)

    def run(self, name: str) -> str:
        """Folder of a training run; `grid/head` names one head of a grid of heads.

        Raises:
            UserError: the name is not allowed; so do all methods that take a name.
        """
        _check_name("run", name)
        if name in BUILT_IN_PREDICTORS:
            raise UserError(f"run {name!r} has the name of a built-in predictor: give it another")
        return join(self.runs, name)

    def evaluation(self, name: str) -> str:
        return self._result(name)

    def predictions(self, name: str) -> str:
        return self._result(name)

    def export(self, name: str) -> str:
        return self._result(name)

    def search(self, name: str) -> str:
        return self._result(name)

    def generated(self, name: str) -> str:
        return self._result(name)

    def _result(self, name: str) -> str:
        _check_name("result", name)
        if name.partition("/")[0] in _OWN:
            raise UserError(f"result {name!r}: allowed are names other than {', '.join(_OWN)}")
        return join(self.out, name)

    def open_index(self) -> Artifact:
        """Load the finished folder.

        Raises:
            UserError: it is absent or unfinished; so do all `open_*` methods.
        """
        return Artifact.load(self.index, Stage.INDEX)

    def open_clean(self) -> Artifact:
        return Artifact.load(self.clean, Stage.CLEAN)

    def open_targets(self) -> Artifact:
        return Artifact.load(self.targets, Stage.TARGETS)

    def open_groups(self) -> Artifact:
        return Artifact.load(self.groups, Stage.GROUPS)

    def open_shards(self) -> Artifact:
        return Artifact.load(self.shards, Stage.SHARDS)

    def open_features(self) -> Artifact:
        return Artifact.load(self.features, Stage.FEATURES)

    def open_run(self, name: str) -> Artifact:
        return Artifact.load(self.run(name), Stage.TRAIN)

    def open_predictor(self, name: str) -> Artifact:
        """Load the finished training run, blend or calibrated predictor of that name."""
        manifest = read_manifest(self.run(name))
        stages = (Stage.BLEND, Stage.CALIBRATION)
        stage = manifest["stage"] if manifest and manifest["stage"] in stages else Stage.TRAIN
        return Artifact.load(self.run(name), stage)

    def check_predictor(self, name: str) -> None:
        """Check that the finished folders are there which a predictor answers from."""
        if name in BUILT_IN_PREDICTORS:
            if name == NEIGHBOURS:
                self.open_features()
            return
        predictor = self.open_predictor(name)
        if predictor.stage == Stage.CALIBRATION:
            self.open_features()
            self.check_predictor(predictor.config["run"])
        elif predictor.stage == Stage.BLEND:
            for member in predictor.config["runs"]:
                self.check_predictor(member)


def _check_name(kind: str, name: str) -> None:
    """Refuse (UserError) a name that would leave its folder or be hidden in it."""
    if not name.isprintable() or any(not part or part[0] == "." for part in name.split("/")):
        raise UserError(
            f"{kind} {name!r}: allowed are printable names, none empty or with '.' at the start; "
            "'/' makes folders, as in grid/head"
        )


@dataclass(frozen=True)
class RunFolder:
    """Folder of one training run, and what is in it until the run is finished."""

    uri: str

    @property
    def work(self) -> str:
        """Files of Ray Train and checkpoints; deleted when the run is finished."""
        return join(absolute(self.uri), "ray")

    @property
    def checkpoints(self) -> str:
        return join(self.work, "checkpoints")

    @property
    def stop_request(self) -> str:
        """File whose existence asks the run to save and end."""
        return join(self.work, "stop/asked")


@dataclass(frozen=True)
class HeadsFolder:
    """Folder of a grid of heads, each of which is a run."""

    uri: str

    def head(self, name: str) -> str:
        return join(self.uri, name)


@dataclass(frozen=True)
class SearchFolder:
    """Folder of a search."""

    uri: str

    @property
    def trials(self) -> str:
        return join(self.uri, "trials")

    def trial(self, name: str) -> str:
        """Folder of a trial, which is a run."""
        return join(self.trials, name)


@dataclass(frozen=True)
class IndexFolder:
    """Folder of an index."""

    uri: str

    @property
    def portions(self) -> str:
        """Listed portions of the sources; deleted when the index is finished."""
        return join(self.uri, "listed")


@dataclass(frozen=True)
class GeneratedFolder:
    """Folder of generated pictures."""

    uri: str

    @property
    def pictures(self) -> str:
        """Source for `prepare`: Parquet files of pictures with their prompts and settings."""
        return join(self.uri, "pictures")
