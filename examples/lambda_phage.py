# /// script
# requires-python = ">=3.11"
# dependencies = ["rhapsody-core"]
# ///
"""Read alignment and variant calling for the lambda phage genome, as a workflow of programs.

`bowtie2` aligns chunks of paired reads in parallel, `samtools` sorts and merges the alignments, and
`bcftools` calls the variants. Every task is a program that runs in its own directory. It declares
the files that it reads and writes, and Rhapsody passes them between tasks by name.

    python examples/lambda_phage.py                  # on this machine
    rhapsody run examples/lambda_phage.py -b NAME    # on any backend that runs executables

The reads and the reference genome come with bowtie2. On Debian and Ubuntu:

    apt-get install bowtie2 bowtie2-examples samtools bcftools

On other systems, set BT2_HOME to the bowtie2 directory that contains `example/`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path

from rhapsody import InputFile, OutputFile, WorkflowEngine

Command = list[str | InputFile | OutputFile]

CHUNKS = 4
PAIRS = 10_000  # pairs of reads in bowtie2's example
INDEX = [f"lambda.{part}.bt2" for part in ("1", "2", "3", "4", "rev.1", "rev.2")]

TOOLS = ["bowtie2", "samtools", "bcftools"]
INSTALL = "apt-get install bowtie2 bowtie2-examples samtools bcftools"
DEBIAN_EXAMPLES = "/usr/share/doc/bowtie2/examples"


async def main(flow: WorkflowEngine) -> None:
    """Align the reads, call the variants, and print them."""
    genome_data, left_data, right_data = find_data()
    started = time.perf_counter()

    # The programs. Each command runs in its own directory, which contains its input files.
    # It must write its output files to the same directory, under the declared names.

    @flow.executable_task
    async def unpack(packed: InputFile, plain: OutputFile) -> str:
        return f"gzip -cdf {packed} > {plain}"

    @flow.executable_task
    async def index(genome: InputFile, *parts: OutputFile) -> Command:
        return ["bowtie2-build", "--quiet", genome, "lambda"]

    @flow.executable_task
    async def split(reads: InputFile, *chunks: OutputFile) -> Command:
        lines = 4 * PAIRS // CHUNKS  # each read has four lines
        prefix = reads.filename.removesuffix("fq")
        names = ["--numeric-suffixes", "--additional-suffix=.fq"]
        return ["split", f"--lines={lines}", *names, reads, prefix]

    @flow.executable_task
    async def align(
        left: InputFile, right: InputFile, aligned: OutputFile, *index: InputFile
    ) -> Command:
        return ["bowtie2", "-x", "lambda", "-1", left, "-2", right, "-S", aligned]

    @flow.executable_task
    async def sort(aligned: InputFile, ordered: OutputFile) -> Command:
        return ["samtools", "sort", "-o", ordered, aligned]

    @flow.executable_task
    async def merge(merged: OutputFile, *ordered: InputFile) -> Command:
        return ["samtools", "merge", merged, *ordered]

    @flow.executable_task
    async def pile_up(genome: InputFile, reads: InputFile, pileup: OutputFile) -> Command:
        return ["bcftools", "mpileup", "-Ou", "-f", genome, "-o", pileup, reads]

    @flow.executable_task
    async def call(pileup: InputFile, variants: OutputFile) -> Command:
        one_copy = ["--ploidy", "1"]  # a phage has one copy of its genome
        return ["bcftools", "call", "-mv", *one_copy, "-Ob", "-o", variants, pileup]

    @flow.executable_task
    async def listed(variants: InputFile) -> Command:
        return ["bcftools", "query", "-f", "%POS\t%REF\t%ALT\t%QUAL\n", variants]

    # The workflow. An input file names an output file of an earlier call.

    unpack(InputFile(genome_data), OutputFile("genome.fa"))
    index(InputFile("genome.fa"), *map(OutputFile, INDEX))

    for side, data in (("left", left_data), ("right", right_data)):
        unpack(InputFile(data), OutputFile(f"{side}.fq"))
        chunks = [OutputFile(f"{side}.{chunk:02}.fq") for chunk in range(CHUNKS)]
        split(InputFile(f"{side}.fq"), *chunks)

    for chunk in range(CHUNKS):
        align(
            InputFile(f"left.{chunk:02}.fq"),
            InputFile(f"right.{chunk:02}.fq"),
            OutputFile(f"{chunk:02}.sam"),
            *map(InputFile, INDEX),
        )
        sort(InputFile(f"{chunk:02}.sam"), OutputFile(f"{chunk:02}.bam"))

    merge(OutputFile("merged.bam"), *(InputFile(f"{chunk:02}.bam") for chunk in range(CHUNKS)))
    pile_up(InputFile("genome.fa"), InputFile("merged.bam"), OutputFile("pileup.bcf"))
    call(InputFile("pileup.bcf"), OutputFile("variants.bcf"))
    variants = (await listed(InputFile("variants.bcf"))).splitlines()

    print("position  reference  variant  quality")
    for position, reference, variant, quality in (line.split("\t") for line in variants[:10]):
        print(f"{position:>8}  {reference:9.9}  {variant:7.7}  {float(quality):7.1f}")
    print(f"\nvariants   {len(variants)}")
    print(f"tasks      {flow.stats.done} done, {flow.stats.failed} failed")
    print(f"wall time  {time.perf_counter() - started:.1f} s")


def find_data() -> list[Path]:
    """Return the paths of the genome and of both halves of the reads.

    Raises:
        SystemExit: A program or the data is missing.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    home = os.environ.get("BT2_HOME")
    examples = Path(home, "example") if home else Path(DEBIAN_EXAMPLES)
    found = []
    for name in ("reference/lambda_virus.fa", "reads/reads_1.fq", "reads/reads_2.fq"):
        forms = [examples / name, examples / f"{name}.gz"]
        there = [form for form in forms if form.exists()]
        missing += [] if there else [str(forms[0])]
        found += there[:1]
    if missing:
        sys.exit(
            f"missing: {', '.join(missing)}\n"
            f"on Debian and Ubuntu: {INSTALL}\n"
            "on other systems: install the programs in PATH, and set BT2_HOME to the bowtie2 "
            "directory that contains example/"
        )
    return found


async def on_this_machine() -> None:
    """Run the workflow on the local backend."""
    async with WorkflowEngine.create() as flow:
        await main(flow)


if __name__ == "__main__":
    asyncio.run(on_this_machine())
