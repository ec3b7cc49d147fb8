"""What is wrong with recipes is told in one round: of their texts, their names, their checkpoint, and all of them together."""

from pathlib import Path

import pytest

from fake_wiring import World
from forge.errors import RecipeError, RepositoryError, SourceError

LONG = "[build]\nmax_input_len = 4000\nmax_seq_len = 3000\n"
BEYOND = "build.max_input_len: is 4000, above build.max_seq_len (3000)"


def _recipe(folder: Path, name: str, more: str) -> Path:
    top, _, tables = more.partition("[")
    file = folder / f"{name}.toml"
    file.write_text(f'name = "{name}"\n{top}\n[source]\nhub = "owner/m"\n{"[" if tables else ""}{tables}')
    return file


def _told(world: World, tmp_path: Path, *recipes: Path) -> list[str]:
    """The first lines of all problems, with the files' names alone."""
    with pytest.raises(RecipeError) as refused:
        world.shop(tmp_path / "home").plan(recipes)
    assert refused.value.exit_code == 3
    return [
        f"{Path(each.where.partition(': ')[0]).name}: {each.where.partition(': ')[2]}: {each.what}"
        for each in refused.value.problems
    ]


def test_a_misspelt_family_is_told_with_file_and_nearest(world: World, tmp_path: Path) -> None:
    for runtime in ("twin", "vllm", "llmapi", "engine"):
        recipe = _recipe(tmp_path, "m", f'family = "lama"\n[runtime]\nkind = "{runtime}"\n')
        with pytest.raises(RecipeError) as refused:
            world.shop(tmp_path / "home").plan([recipe])
        (problem,) = refused.value.problems
        assert (problem.where, problem.what) == (f"{recipe}: family", "no family 'lama' is installed")
        assert problem.hint.startswith("did you mean 'llama'? installed: gemma, llama, phi, qwen, t5;")


def test_a_run_with_a_misspelt_family_takes_no_other_runtime(world: World, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "m", 'family = "lama"\n[runtime]\nkind = "twin"\n')
    with pytest.raises(RecipeError, match=r"m\.toml: family: no family 'lama' is installed"):
        world.shop(tmp_path / "home").runs.choose(str(recipe))


def test_a_recipes_mistakes_of_all_kinds_come_at_once(world: World, tmp_path: Path) -> None:
    more = f'family = "lama"\nvariant = "meduza"\n[runtime]\nkind = "engine"\nimage = "25.99"\n[serve]\nstreem = true\n{LONG}'
    assert [each.partition(": found")[0] for each in _told(world, tmp_path, _recipe(tmp_path, "m", more))] == [
        "m.toml: serve.streem: unknown key",
        "m.toml: family: no family 'lama' is installed",
        "m.toml: variant: no variant 'meduza' is installed",
        "m.toml: runtime.image: no image '25.99' is known; known tags: 24.10 to 26.07",
        f"m.toml: {BEYOND}",
    ]


def test_defaults_of_misspelt_and_broken_keys_are_not_judged(world: World, tmp_path: Path) -> None:
    for wrong in ("max_seq_length = 8000", "max_seq_len = 0", 'max_seq_len = "8000"'):
        recipe = _recipe(
            tmp_path, "m", f'[runtime]\nkind = "twin"\n[build]\n{wrong}\nmax_input_len = 4000\n[sampling]\nmax_tokens = 3000'
        )
        (told,) = _told(world, tmp_path, recipe)
        assert told.startswith("m.toml: build.max_seq_len")


def test_a_missing_file_hides_nothing_of_other_recipes(world: World, tmp_path: Path) -> None:
    gone, broken = tmp_path / "gone.toml", _recipe(tmp_path, "b", 'family = "lama"\n[runtime]\nkind = "twin"\n')
    assert _told(world, tmp_path, gone, broken) == [
        "gone.toml: : the recipe cannot be read: there is no such file",
        "b.toml: family: no family 'lama' is installed",
    ]
    sound = _recipe(tmp_path, "c", '[runtime]\nkind = "twin"\n')
    with pytest.raises(SourceError, match="there is no such file"):
        world.shop(tmp_path / "home").plan([gone, sound])


def test_what_is_wrong_with_several_recipes_comes_at_once(world: World, tmp_path: Path) -> None:
    first = _recipe(tmp_path, "a", f'[runtime]\nkind = "twin"\n{LONG}')
    second = _recipe(tmp_path, "b", '[runtime]\nkind = "vllm"\n[serve]\nstream = false\n')
    third = _recipe(tmp_path, "c", 'family = "lama"\n[runtime]\nkind = "twin"\n')
    told = _told(world, tmp_path, first, second, third)
    assert told[0] == "c.toml: family: no family 'lama' is installed"
    assert told[1] == f"a.toml: {BEYOND}"
    assert told[2].startswith("b.toml: serve.stream: is false")
    apart = _told(world, tmp_path, first, second)
    assert "one server cannot serve them all" in apart[0]
    assert apart[1:] == told[1:]


def test_a_checkpoint_out_of_reach_is_told_beside_mistakes(world: World, tmp_path: Path) -> None:
    world.origin.down = True
    typo = _recipe(tmp_path, "a", '[runtime]\nkind = "twin"\n[serve]\nstreem = true\n')
    sound = _recipe(tmp_path, "b", '[runtime]\nkind = "twin"\n')
    told = _told(world, tmp_path, typo)
    assert told[0] == "a.toml: serve.streem: unknown key"
    assert len(told) == 2
    assert len(_told(world, tmp_path, typo, sound)) == 3
    with pytest.raises(SourceError):  # alone it has its own exit code
        world.shop(tmp_path / "home").plan([sound])


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/dev/null", "/dev/null: a device stands there, not a folder"),
        ("file", "file: a file stands there, not a folder"),
        ("file/below", "file: a file stands there, not a folder"),
        ("loop", "loop: Too many levels of symbolic links"),
    ],
)
def test_a_repository_that_is_no_folder_is_refused_at_plan(world: World, tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    _recipe(tmp_path, "m", '[runtime]\nkind = "twin"\n')
    deployment = tmp_path / "d.toml"
    deployment.write_text(f'recipes = ["m.toml"]\nrepository = "{place}"\n')
    shop = world.shop(tmp_path / "home")
    for verb in (shop.foresee, shop.plan, shop.build, None):
        with pytest.raises(RepositoryError) as refused:
            verb([deployment]) if verb else shop.check(deployment)
        assert str(refused.value).partition("\n")[0].endswith(told)
    assert world.made() == []
    deployment.write_text('recipes = ["m.toml"]\nrepository = "new/below"\n')
    assert shop.plan([deployment]).steps
