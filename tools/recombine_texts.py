"""Makes Parquet files in the columns of FineWeb-EDU from the paragraphs of other texts, to measure preparation with.

    python tools/recombine_texts.py --texts=FOLDER_OF_JSONL --output=FOLDER [--megabytes=220] [--file_megabytes=110]

Documents have the lengths of web pages (lognormal, median about 700 tokens); one in 200 repeats another.
"""

import argparse
import math
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet

from jaxformer.data.corpus import CorpusConfig, load_documents

MEDIAN_CHARACTERS = 3000
SPREAD = 0.95


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True, help="a JSON lines file, or a folder of such files")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--megabytes", type=float, default=220, help="of text in all (default: 220)")
    parser.add_argument("--file_megabytes", type=float, default=110, help="of text in a file (default: 110)")
    options = parser.parse_args()
    paragraphs = [
        paragraph
        for document in load_documents(CorpusConfig(kind="jsonl", path=options.texts))
        for paragraph in document.text.split("\n\n")
        if 40 < len(paragraph) < 4000
    ]
    choices = random.Random(0)
    options.output.mkdir(parents=True, exist_ok=True)
    number, total = 0, 0
    for file in range(math.ceil(options.megabytes / options.file_megabytes)):
        rows, size = [], 0
        while size < options.file_megabytes * 1e6 and total + size < options.megabytes * 1e6:
            text = choices.choice(rows)["text"] if number % 200 == 199 and rows else make_text(paragraphs, choices)
            rows.append(make_row(number, text))
            size += len(text.encode())
            number += 1
        path = options.output / f"{file:03d}_00000.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1000)
        total += size
    print(f"{number:,} documents, {total / 1e6:,.0f} MB of text, in {options.output}")


def make_text(paragraphs: list[str], choices: random.Random) -> str:
    """Returns a text of random paragraphs and of a random length."""
    wanted = max(200, math.exp(choices.gauss(math.log(MEDIAN_CHARACTERS), SPREAD)))
    chosen, size = [], 0
    while size < wanted:
        chosen.append(choices.choice(paragraphs))
        size += len(chosen[-1])
    return "\n\n".join(chosen)


def make_row(number: int, text: str) -> dict:
    """Returns a row with the columns of FineWeb-EDU."""
    return {
        "text": text,
        "id": f"<urn:uuid:{number:032x}>",
        "dump": "CC-MAIN-2013-20",
        "url": f"http://example.org/{number}",
        "file_path": "s3://commoncrawl/crawl-data/CC-MAIN-2013-20/segments/x.warc.gz",
        "language": "en",
        "language_score": 0.95,
        "token_count": len(text) // 4,
        "score": 3.1,
        "int_score": 3,
    }


if __name__ == "__main__":
    main()
