"""Probes by fold: what they have seen, and that each is the probe of a separate training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_features import FILES, PROMPTS, WIDTH, rows_of, write
from tiny import TINY, Trained, run_loop

from img2prompt.config.prepare import ShardConfig
from img2prompt.config.train import TrainConfig
from img2prompt.data.shards import SPLITS
from img2prompt.data.vectors import DIMENSIONS, vector_column
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.heads.ridge import RidgeSums, solve
from img2prompt.model.prompt_model import PromptModel, build_prompt_model, learned_state
from img2prompt.train import fold_probes
from img2prompt.train.fold_probes import LoadedRows, probes_by_fold
from img2prompt.train.folds import FoldedFeatures, folds_of_prompts
from img2prompt.train.job import TrainInputs

FOLDS = 4
STRENGTHS = (10.0, 0.1, 1e-3)
RIDGE = TINY.replace({"optim.solver": "ridge", "optim.ridge_strengths": list(STRENGTHS)})
ADAMW = TINY.replace({"optim.epochs": 2, "head.width": 7, "head.dropout": 0.1})


def folded(inputs: TrainInputs, seed: int = 0) -> FoldedFeatures:
    assert inputs.features is not None
    assert inputs.groups is not None
    fold_of = folds_of_prompts(inputs.groups, FOLDS, SPLITS, seed)
    return FoldedFeatures(inputs.features, inputs.shards, fold_of, FOLDS)


def rows_by_fold(
    inputs: TrainInputs, data: FoldedFeatures
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets and fold of all rows of the view "plain"."""
    x, y, prompts = (
        np.concatenate(arrays)
        for arrays in zip(*(rows_of(inputs, split) for split in SPLITS), strict=True)
    )
    return x, y, np.array([data.fold_of[prompt_id] for prompt_id in prompts])


def state_of(probe: PromptModel) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in learned_state(probe).items()}


def with_targets_of(inputs: TrainInputs, folder: Path, prompt_ids: set[str]) -> TrainInputs:
    """Write the shards again with other targets of some prompts."""
    draft = Draft.open(str(folder), "shards", ShardConfig(size=32), {})
    rng = np.random.default_rng(7)
    for name in inputs.shards.names():
        table = inputs.shards.read_table(name)
        targets = np.array(table["target"].to_pylist())
        changed = np.isin(table["prompt_id"].to_pylist(), list(prompt_ids))
        targets[changed] = rng.normal(size=(changed.sum(), DIMENSIONS))
        draft.write_table(name, table.set_column(4, "target", vector_column(targets)))
    return TrainInputs(draft.publish(), inputs.features, groups=inputs.groups)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainInputs:
    return write(tmp_path_factory.mktemp("plain"))


def test_folds_divide_the_groups_of_all_splits(inputs: TrainInputs) -> None:
    assert inputs.groups is not None
    fold_of = folded(inputs).fold_of
    assert len(fold_of) == PROMPTS + 11 + 6
    rows = inputs.groups.read_tables("rows").to_pylist()
    group_of = {row["prompt_id"]: row["group"] for row in rows if row["kept"]}
    folds_of_groups = {(group_of[prompt_id], fold) for prompt_id, fold in fold_of.items()}
    assert len(folds_of_groups) == len(set(group_of.values()))
    sizes = np.bincount(list(fold_of.values()))
    assert sizes.max() - sizes.min() <= 2
    assert folded(inputs, seed=1).fold_of != fold_of
    assert folded(inputs, seed=0).fold_of == fold_of


def test_ridge_by_fold_is_nested_cross_validation(inputs: TrainInputs) -> None:
    data = folded(inputs)
    x, y, fold = rows_by_fold(inputs, data)
    chosen = []
    for number, probe in enumerate(probes_by_fold(RIDGE, data, WIDTH)):
        scores = []
        for strength in STRENGTHS:
            cosines = np.empty(len(x))
            for inner in set(range(FOLDS)) - {number}:
                learned, held_out = (fold != number) & (fold != inner), fold == inner
                head = solve(RidgeSums.over(x[learned], y[learned]), [strength])
                predicted = x[held_out] @ head.weight[0] + head.bias[0]
                norms = np.linalg.norm(predicted, axis=1)
                cosines[held_out] = (predicted * y[held_out]).sum(axis=1) / norms
            scores.append(cosines[fold != number].mean())
        chosen.append(STRENGTHS[int(np.argmax(scores))])
        head = solve(RidgeSums.over(x[fold != number], y[fold != number]), [chosen[-1]])
        np.testing.assert_allclose(state_of(probe)["head.weight"].T, head.weight[0], atol=1e-6)
        np.testing.assert_allclose(state_of(probe)["head.bias"], head.bias[0], atol=1e-6)
    assert STRENGTHS[0] not in chosen


@pytest.mark.parametrize("config", [RIDGE, ADAMW], ids=["ridge", "adamw"])
def test_a_probe_has_not_seen_its_fold(
    config: TrainConfig, inputs: TrainInputs, tmp_path: Path
) -> None:
    data = folded(inputs)
    of_fold = {prompt_id for prompt_id, fold in data.fold_of.items() if fold == 2}
    other = folded(with_targets_of(inputs, tmp_path, of_fold))
    pairs = zip(
        probes_by_fold(config, data, WIDTH), probes_by_fold(config, other, WIDTH), strict=True
    )
    for fold, (ours, theirs) in enumerate(pairs):
        same = [
            np.allclose(tensor, state_of(theirs)[name], atol=1e-6)
            for name, tensor in state_of(ours).items()
        ]
        assert all(same) == (fold == 2)


def test_adamw_by_fold_is_a_run_on_the_other_folds(inputs: TrainInputs) -> None:
    data = folded(inputs)
    probe = probes_by_fold(ADAMW, data, WIDTH)[1]
    rows, fold = fold_probes._load(data)
    learned = LoadedRows(rows.features[fold != 1], rows.targets[fold != 1])
    model = build_prompt_model(None, WIDTH, ADAMW.plan, ADAMW.head, ADAMW.seed)
    run_loop(ADAMW, learned, rows, run=Trained([], [], model))
    for name, tensor in learned_state(model).items():
        torch.testing.assert_close(learned_state(probe)[name], tensor)
    assert not probe.training


def test_rows_of_all_views_are_learned_from(tmp_path: Path) -> None:
    data = folded(write(tmp_path, views=("plain", "flip")))
    rows, fold = fold_probes._load(data)
    assert len(rows) == len(fold) == 2 * sum(map(sum, FILES.values()))


def test_other_settings_than_those_of_a_lone_probe_are_refused(inputs: TrainInputs) -> None:
    for changes in ({"recipe.ema_decay": 0.9}, {"start_from": "other"}):
        with pytest.raises(UserError, match="allowed with folds: 0 and empty"):
            probes_by_fold(ADAMW.replace(changes), folded(inputs), WIDTH)
    for name in ("negative_weight", "info_nce_weight"):
        config = ADAMW.replace({f"recipe.{name}": 0.1})
        with pytest.raises(UserError, match=rf"recipe\.{name} 0\.1.*; allowed with folds: 0, as"):
            probes_by_fold(config, folded(inputs), WIDTH)
