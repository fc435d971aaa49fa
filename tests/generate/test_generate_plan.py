"""Which pictures are made from which seeds."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from img2prompt.generate.plan import Plan, read_requests, seed_of


def test_seeds_are_fixed_and_differ_for_every_picture() -> None:
    # sha256("0 abc 1") begins with these four bytes.
    assert seed_of(0, "abc", 1) == 0x46BFB2D1
    seeds = {seed_of(run, text, n) for run in (0, 1) for text in ("a", "b") for n in range(50)}
    assert len(seeds) == 200
    assert max(seeds) < 2**32


@pytest.mark.parametrize("in_shard", [1, 2, 3, 7, 100])
def test_shards_hold_every_picture_once_the_first_of_every_prompt_first(
    tmp_path: Path, in_shard: int
) -> None:
    prompts = pa.table({"prompt_id": list("abc"), "prompt": ["cat", "dog", "owl"]})
    path = str(tmp_path / "prompts.parquet")
    pq.write_table(prompts, path, row_group_size=2)
    plan = Plan(prompts=3, pictures_per_prompt=3, pictures_per_shard=in_shard)
    shards = [read_requests(path, plan, shard, run_seed=5) for shard in range(plan.shards)]
    assert [len(shard) for shard in shards] == [plan.size(shard) for shard in range(plan.shards)]
    requests = [request for shard in shards for request in shard]
    assert [request.id for request in requests] == [
        f"{prompt}-{number:03d}" for number in range(3) for prompt in "abc"
    ]
    assert [request.prompt for request in requests[:3]] == ["cat", "dog", "owl"]
    assert requests[4].seed == seed_of(5, "b", 1)
