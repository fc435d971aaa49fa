"""Train the demo tower that this package carries, from random weights, and write its checkpoint."""

from img2prompt import cli, presets
from img2prompt.distributed import cluster
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import load_prompt_model
from img2prompt.prepare import run as prepare
from img2prompt.storage import join
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs


def job() -> None:
    options = cli.parse(__doc__, {"tower": presets.tower_training})
    config, out = options.config, options.out
    if config.plan.lora_rate:
        raise UserError(f"--plan.lora-rate is {config.plan.lora_rate}; allowed for a tower: 0")
    with cluster.connect(dashboard=True):
        prepared = prepare.run(presets.tower_data(), out)
        run = train.run(config, TrainInputs(prepared.shards), join(out, "runs", config.name))
    folder = join(out, "tower")
    tower = load_prompt_model(run).tower
    assert tower is not None
    tower.save(folder)
    cli.show(f"tower in {folder}", ["", "value"], [[k, v] for k, v in run.counts.items()])


if __name__ == "__main__":
    cli.main(job)
