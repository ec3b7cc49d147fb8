"""proto."""

import click

from forge.cli.output import Output, verb


@click.command()
@click.option("-o", "--output", "folder", type=click.Path(), default=".", help="Folder to write into. [default: .]")
@verb
def proto(output: Output, folder: str) -> None:
    """Write KServe's service definition, for clients without one.

    Two .proto files with Triton's extensions: Postman, grpcurl and clients in other languages stream with them.

    \b
    Example:
        forge proto -o proto
    """
    from pathlib import Path

    from forge.errors import ForgeError

    place = Path(folder)
    files = {place / name: text for name, text in output.here().definition().items()}
    for file, text in files.items():
        if file.exists() and (not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text):
            raise ForgeError("there is another file already", where=str(file), hint="choose another folder with --output")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except FileExistsError as error:
        hint = "--output names a folder: choose another, or move the file away"
        raise ForgeError("there is a file where the folder would be", where=str(place), hint=hint) from error
    except OSError as error:
        what = f"the definition cannot be written: {error.strerror or error}"
        raise ForgeError(what, where=str(error.filename or place), hint="choose another folder with --output") from error
    names = [str(file) for file in files]
    output.result({"files": names}, "\n".join(names))
