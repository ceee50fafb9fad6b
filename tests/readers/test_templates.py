"""The prompt as a template, and the texts that lie beside pictures."""

import json
from pathlib import Path

import pytest

from trimtok_cli.config import CAPTION_PROMPT, VIDEO_PROMPT, RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.readers import read_any
from trimtok_cli.readers.reading import Reading
from trimtok_cli.readers.templates import prompted, with_prompt
from trimtok_cli.resolve import build


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def asked(prompt, sources=("in",), command="any"):
    source = read_any(list(sources), Reading(recursive=True), command=command)
    return list(with_prompt(source, prompt).samples)


def refusal(prompt, **options):
    with pytest.raises(UsageError) as caught:
        asked(prompt, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "folder"), [(".", "my cat"), ("..", "photos"), ("../my cat/b.jpg", "my cat")]
)
def test_a_folder_has_its_name_however_it_is_named(source, folder, monkeypatch):
    touch("photos/a.jpg", "photos/my cat/b.jpg")
    monkeypatch.chdir("photos/my cat")
    source = read_any([source])
    assert [each.question for each in with_prompt(source, "{dir}").samples] == [folder]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Describe {stem} in {dir}", "Describe b.c in 10_my cat"),
        ("{name}|{parent}|{concept}", "b.c.jpg|in/10_my cat|my cat"),
        ("{{{stem}}}", "{b.c}"),
        ("{{stem}} {stem}{stem}", "{stem} b.cb.c"),
        ('As JSON: {{"a": {{}}}}', 'As JSON: {"a": {}}'),
    ],
)
def test_names_stand_for_what_the_picture_has(prompt, question):
    touch("in/10_my cat/b.c.jpg")
    (sample,) = asked(prompt)
    assert (sample.question, sample.id, sample.problem) == (question, "10_my cat/b.c.jpg", "")


@pytest.mark.parametrize("prompt", ["", "What?", "  100 % \t\n $stem %s \\n "])
def test_a_prompt_without_braces_is_left_alone(prompt):
    touch("in/a.jpg")
    source = read_any(["in"])
    assert with_prompt(source, prompt) is source
    assert [sample.question for sample in source.samples] == [None]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{stam}", "did you mean stem?"),
        ("{caption}", "known are concept, dir, name, parent, stem"),
        ("{}", "names {}"),
        ("{stem.upper}", "names {stem.upper}"),
        ("{stem!r}", "names {stem!r}"),
        ("{0}", "names {0}"),
        ("a { b", "single { at character 3"),
        ("a } b", "single } at character 3"),
        ('{"a": 1}', "{{ }}"),
    ],
)
def test_a_prompt_that_names_nothing_known_is_refused_before_the_run(prompt, said):
    touch("in/a.jpg")
    assert said in refusal(prompt)


def rows(*given):
    Path("m.jsonl").write_text("\n".join(map(json.dumps, given)))
    return ("m.jsonl",)


def test_columns_of_the_row_are_put_in_and_a_row_without_fails_alone():
    source = rows(
        {"file_name": "a.jpg", "text": "A cat", "n": 2},
        {"file_name": "b.jpg", "n": 3},
        {"file_name": "c.jpg", "text": ["x"]},
        {"file_name": "d.jpg", "text": "{n}", "name": "own"},
        {"file_name": "e.jpg", "question": "Is {text} a name?"},
    )
    found = asked("{text} {name}", source, command="caption")
    assert [s.question for s in found if not s.problem] == [
        "A cat a.jpg",
        "{n} own",
        "Is {text} a name?",
    ]
    assert "b.jpg: it has no text" in found[1].problem and "holds no text" in found[2].problem
    assert "did you mean text?" in refusal("{texts}", sources=source, command="caption")


def test_questions_of_a_file_are_never_templates():
    source = rows({"question_id": 1, "image": "a.jpg", "text": "What is {stem} {unknown} { ?"})
    assert asked("{stem} {whatever}", source)[0].question == "What is {stem} {unknown} { ?"


def test_sidecars_are_put_in_where_the_prompt_names_them():
    touch("in/a.jpg", "in/b.jpg", "in/c.jpg", "in/d.jpg", "in/e.jpg")
    Path("in/a.txt").write_text("\ufeffcat, red\n")
    Path("in/b.txt").write_text("not this")
    Path("in/b.caption").write_text("dog")
    Path("in/c.txt").write_bytes(b"sch\xf6n")
    Path("in/d.txt").write_text(" \n")
    found = asked("Tags: {tags}. {caption}")
    assert [s.question for s in found[:2]] == ["Tags: cat, red. cat, red", "Tags: dog. dog"]
    assert "not UTF-8" in found[2].problem and "d.txt beside it is empty" in found[3].problem
    assert "e.jpg: it has no tags" in found[4].problem
    assert [sample.extra for sample in asked("{stem}")] == [{}] * 5


def test_standard_input_is_templated_as_it_comes():
    touch("a.jpg", "b.jpg")
    source = with_prompt(read_any(["-"], stdin=["a.jpg\n", "b.jpg\n"]), "{stem}?")
    assert source.total is None and [s.question for s in source.samples] == ["a?", "b?"]


@pytest.mark.parametrize("given", [None, CAPTION_PROMPT, "What moves in {stem}?"])
def test_a_video_is_asked_about_the_video_unless_a_prompt_was_given(given):
    touch("in/a.png", "in/b.mp4")
    values = {"method": "dense"} | ({"prompt": given} if given else {})
    config = build(RunConfig, values, "a test") if given else RunConfig(method="dense", keep="all")
    config.sources.update({"prompt": "flag"} if given else {})
    source = prompted(read_any(["in"]), config)
    picture, video = [each.question or config.prompt for each in source.samples]
    assert source.total == 2
    if given is None:
        assert (picture, video) == (CAPTION_PROMPT, VIDEO_PROMPT)
    else:
        assert [picture, video] == [given.replace("{stem}", stem) for stem in "ab"]
