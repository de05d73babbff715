"""Options that several commands have, with the same words. Knows no commands."""

from pathlib import Path
from typing import Annotated

import typer

IndexRoot = Annotated[Path, typer.Option(help="Root of the index versions.")]
ModelRoot = Annotated[Path, typer.Option(help="Root of the model versions.")]
Users = Annotated[Path | None, typer.Option(help="Users: user_id and any attributes.")]
MaxRejected = Annotated[float, typer.Option(min=0, max=1, help="Share of unusable log rows above which this fails.")]
Newest = Annotated[
    int | None,
    typer.Option(min=1, help="Use only so many of the log's newest rows, so that any log fits; default: all."),
]
Rejected = Annotated[
    Path | None,
    typer.Option(
        help="Where to list the log's rows that cannot be used, with their reasons; default: rejected-clicks.jsonl in "
        "the root of a command that makes a version, else nowhere."
    ),
]
History = Annotated[
    Path | None,
    typer.Option(
        help="What users did before the log begins: user_id, ad_id, timestamp, and clicks and conversions (default: a "
        "click). Users look back on it; it is counted nowhere."
    ),
]
RetrievalBaselines = Annotated[
    bool, typer.Option(help="Also judge popularity, zero-shot text, item-kNN, EASE and ALS.")
]
RetrievalWeight = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="What retrieval's score counts in the order beside the log-odds of the click; 0 for these alone; default: "
        "what the model version says (fit-order), or 4.",
    ),
]
Report = Annotated[Path | None, typer.Option(help="Also write this HTML page, with plots.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Encoder = Annotated[
    str,
    typer.Option(
        envvar="ADCASCADE_ENCODER",
        help="sentence-transformers directory or hub name; hashing:DIM is a model-free stand-in for dry runs.",
    ),
]
VectorsFolder = Annotated[
    Path | None,
    typer.Option(
        "--vectors",
        envvar="ADCASCADE_VECTORS",
        help="Folder of the text vectors that all commands share; default: vectors beside the root of the versions.",
    ),
]
