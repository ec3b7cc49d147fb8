"""plugins, schema."""

import click

from forge.cli.show import Output, table, verb


@click.command()
@verb
def plugins(output: Output) -> None:
    """Show the installed families and variants, where they come from, and whether they work.

    \b
    Example:
        forge plugins
    """
    from forge.families import installed

    found = installed()
    rows = [("NAME", "KIND", "DISTRIBUTION", "VERSION", "HEALTH")]
    rows += [(p.name, p.kind, p.distribution, p.version, p.health) for p in found]
    output.result({"plugins": found}, table(rows))


@click.command()
@verb
def schema(output: Output) -> None:
    """Print the JSON schema of a recipe, for editors.

    \b
    Example:
        forge schema > recipe.schema.json
    """
    import json

    from forge.recipe import schema as recipe_schema

    document = recipe_schema()
    output.result(document, json.dumps(document, indent=2))
