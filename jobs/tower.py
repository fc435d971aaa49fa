"""Train the demo tower that this package carries, from random weights, and write its checkpoint."""

from img2prompt import cli, presets
from img2prompt.errors import UserError


def job() -> None:
    options = cli.parse(__doc__, {"tower": presets.tower_training})
    config, workspace = options.config, options.workspace
    folder = workspace.run(config.name)
    if config.plan.lora_rate:
        raise UserError(f"--plan.lora-rate is {config.plan.lora_rate}; allowed for a tower: 0")

    from img2prompt.distributed import cluster
    from img2prompt.model.prompt_model import load_prompt_model
    from img2prompt.prepare import run as prepare
    from img2prompt.train import run as train
    from img2prompt.train.job import TrainInputs

    with cluster.connect(dashboard=True):
        prepared = prepare.run(presets.tower_data(), options.out)
        run = train.run(config, TrainInputs(prepared.shards), folder)
    tower = load_prompt_model(run).tower
    assert tower is not None
    tower.save(workspace.tower)
    cli.show(f"tower in {workspace.tower}", ["", "value"], [[k, v] for k, v in run.counts.items()])


if __name__ == "__main__":
    cli.main(job)
