"""The README's table of what verify.py says."""

import json
from pathlib import Path

import pytest

import verify
from benchmarks import readme
from benchmarks import verification as benchmark
from manual_backprop.losses import LOSSES
from tests.support.running import call
from training.families import FAMILIES
from training.learners import verification

SHIPPED = list(FAMILIES)  # here, before the tests add theirs


@pytest.mark.long
def test_the_table_is_made_of_what_verify_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = list(verification.layer_examples(seed=0))
    monkeypatch.setattr(verification, "layer_examples", lambda seed: examples[-1:])
    results = {
        dtype: json.loads(call(capsys, verify.main, "--all", "--seeds", 1, "--json", "--dtype", dtype).out)
        for dtype in ("float64", "float32")
    }
    made = [line.strip("| ").split(" | ") for line in benchmark.table(results).splitlines()[2:]]
    networks = [f"`{name}`, {len(list(family.problems()))} networks" for name, family in FAMILIES.items()]
    assert [row[0] for row in made] == ["1 layers", f"{len(LOSSES) + 1} costs", *networks]
    assert sum(int(row[1].replace(",", "")) for row in made) == sum(r["comparisons"] for r in results.values())
    for column, result in enumerate(results.values(), start=2):
        assert max(float(row[column]) for row in made) == pytest.approx(result["largest_relative_error"], rel=0.05)


def test_the_readme_is_not_written_where_something_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verify.py").write_text("raise SystemExit(1)")
    (tmp_path / "README.md").write_text("<!-- verify -->\nold\n<!-- end of verify -->\n")
    monkeypatch.setattr(benchmark, "SCRIPT", tmp_path / "verify.py")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    with pytest.raises(SystemExit, match="1"):
        benchmark.main()
    assert "old" in (tmp_path / "README.md").read_text()


def test_the_table_in_the_readme_holds_every_part() -> None:
    _, _, after = readme.README.read_text(encoding="utf-8").partition("<!-- verify -->\n")
    lines = [line for line in after.partition("<!-- end of verify -->")[0].splitlines() if line.startswith("| ")]
    for name in SHIPPED:
        assert any(f"`{name}`" in line for line in lines), f"the README's table lacks {name}: `make verify` writes it"
    assert len(lines) == 1 + 2 + len(SHIPPED)
    for line in lines[1:]:
        exact, single = line.strip("| ").split(" | ")[2:]
        assert float(exact) < (1e-13 if "`cnn`" in line else 1e-14)
        assert 1e-14 < float(single) < 1e-5
