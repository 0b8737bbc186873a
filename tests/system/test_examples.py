"""The examples run as they stand, on real input, and what they find is right."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.system.support import ROOT, Built, MakeVenv, check, run

pytestmark = pytest.mark.timeout(1200)

DIGITS = ROOT / "examples" / "digits.py"
LAMBDA_PHAGE = ROOT / "examples" / "lambda_phage.py"
LATTICE_PROTEINS = ROOT / "examples" / "lattice_proteins.py"
BOWTIE2_EXAMPLES = Path("/usr/share/doc/bowtie2/examples")

# The steps of the example, done by hand.
BY_HAND = f"""
gzip -dc {BOWTIE2_EXAMPLES}/reference/lambda_virus.fa.gz > genome.fa
bowtie2-build --quiet genome.fa lambda
gzip -dc {BOWTIE2_EXAMPLES}/reads/reads_1.fq.gz | split -l 10000 -d - left.
gzip -dc {BOWTIE2_EXAMPLES}/reads/reads_2.fq.gz | split -l 10000 -d - right.
for chunk in 00 01 02 03; do
    bowtie2 --quiet -x lambda -1 left.$chunk -2 right.$chunk -S $chunk.sam
    samtools sort -o $chunk.bam $chunk.sam
done
samtools merge merged.bam 00.bam 01.bam 02.bam 03.bam
bcftools mpileup -Ou -f genome.fa merged.bam | bcftools call -mv --ploidy 1 -Ob -o variants.bcf
bcftools view -H variants.bcf | wc -l
"""

needs_phage_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bowtie2", "samtools", "bcftools"))
    or not BOWTIE2_EXAMPLES.joinpath("reads").exists(),
    reason="needs: apt-get install bowtie2 bowtie2-examples samtools bcftools",
)


def number(label: str, output: str) -> int:
    """Return the number after a label in an example's summary."""
    match = re.search(rf"^{label} +(\d+)", output, re.MULTILINE)
    assert match, output
    return int(match[1])


def unique_folds(source: str, output: str) -> int:
    """Return the number of unique folds in the rounds whose chains came from a source."""
    counts = re.findall(rf"^ +\d+  {source}.* (\d+) of 30$", output, re.MULTILINE)
    assert counts, output
    return sum(map(int, counts))


@pytest.mark.parametrize("example", [DIGITS, LATTICE_PROTEINS], ids=lambda path: path.stem)
def test_an_example_without_scikit_learn_says_what_to_install(
    core_alone: Path, tmp_path: Path, example: Path
) -> None:
    done = run(core_alone / "python", example, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install scikit-learn" in done.stderr
    assert "Traceback" not in done.stderr


@needs_phage_tools
def test_lambda_phage_finds_as_many_variants_as_the_same_steps_by_hand(
    core_alone: Path, tmp_path: Path
) -> None:
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    expected = int(check("bash", "-euo", "pipefail", "-c", BY_HAND, cwd=by_hand))
    assert expected > 0
    output = check(core_alone / "python", LAMBDA_PHAGE, cwd=tmp_path)
    assert number("variants", output) == expected


@needs_phage_tools
def test_lambda_phage_runs_from_the_command_line_and_leaves_its_declared_files(
    core_alone: Path, tmp_path: Path
) -> None:
    output = check(core_alone / "rhapsody", "run", LAMBDA_PHAGE, cwd=tmp_path)
    assert number("variants", output) > 0
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".fa", ".bt2", ".fq", ".sam", ".bam", ".bcf", ".jsonl", ".sqlite", ".txt"}
    check(core_alone / "rhapsody", "clean", cwd=tmp_path)
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".sqlite"}


@pytest.mark.parametrize("command", [["python"], ["rhapsody", "run"]])
def test_lambda_phage_without_its_programs_says_which_and_how_to_get_them(
    core_alone: Path, tmp_path: Path, command: list[str]
) -> None:
    program, *arguments = command
    nowhere = ("env", "PATH=/nowhere")
    done = run(*nowhere, core_alone / program, *arguments, LAMBDA_PHAGE, cwd=tmp_path)
    assert done.returncode != 0
    assert "missing: bowtie2, samtools, bcftools" in done.stderr
    assert "apt-get install bowtie2 bowtie2-examples samtools bcftools" in done.stderr
    assert "Traceback" not in done.stderr


def test_lattice_proteins_finds_more_unique_folds_with_its_models_than_by_chance(
    built: Built, make_venv: MakeVenv, tmp_path: Path
) -> None:
    programs = make_venv(built.wheel, "scikit-learn")
    command = programs / "python", LATTICE_PROTEINS
    output = check(*command, cwd=tmp_path, timeout=600)
    # The models select in four rounds, and chance in two.
    assert unique_folds("model", output) > 2 * 2 * unique_folds("chance", output)
    assert number("tasks", output) == 212
    same = check(*command, "--without-server", cwd=tmp_path, timeout=600)
    assert same == output.replace("212", "208")
