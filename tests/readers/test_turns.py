"""Rows of turns, and pictures that a row holds itself or has an address for."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from trimtok_cli.blobs import Address, Held
from trimtok_cli.errors import UsageError
from trimtok_cli.media.images import load_image
from trimtok_cli.readers.paths import read_images
from trimtok_cli.readers.questions import read_questions
from trimtok_cli.readers.reading import Reading


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


SOUND = {"id": "sound", "image": "a.png", "text": "?"}


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(buffer, "PNG")
    return buffer.getvalue()


URI = "data:image/png;base64," + base64.b64encode(png()).decode()


def samples(*rows, **options):
    """The samples of these rows, behind a sound one, so that a broken one is no broken file."""
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (SOUND, *rows)))
    return list(read_questions("q.jsonl", Reading(**options)).samples)[1:]


def problem(row, **options):
    (sample,) = samples(row, **options)
    assert sample.problem.startswith("q.jsonl line 2: ") and "\n" not in sample.problem
    assert not sample.images and sample.video is None
    return sample.problem


# Conversations and chats


def turns(*values, who=("human", "gpt")):
    return [{"from": who[i % 2], "value": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("value", "question"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("What is it?", "What is it?"),
        ("  two  blanks\tinside ", "  two  blanks\tinside "),
        ("Is <image> like <image>?", "Is <image> like <image>?"),
        ("<image>\n<image>\nAlike?", "Alike?"),
        ("<video>\nWhat happens?", "What happens?"),
    ],
)
def test_the_first_human_turn_is_the_question(value, question):
    row = {
        "id": "000",
        "image": ["a.png", "b.png"],
        "conversations": turns(value, "A cat.", "x", "y"),
    }
    (sample,) = samples(row)
    assert sample.question == question and sample.id == "000" and sample.problem == ""
    assert sample.images == (Path("a.png"), Path("b.png")) and sample.answers == ("A cat.",)
    assert sample.extra["conversations"] == row["conversations"]


def test_sharegpt_roles_and_messages_with_images_beside_them():
    chat = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "It."}]
    rows = (
        {"messages": chat, "images": ["a.png"]},
        {
            "conversations": turns("<image>What?", "It.", who=("user", "assistant")),
            "image": "a.png",
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": "a.png"},
                        {"type": "text", "text": "What?"},
                    ],
                },
                chat[1],
            ]
        },
    )
    found = samples(*rows)
    assert len(found) == 3
    for sample in found:
        assert (sample.problem, sample.question, sample.answers) == ("", "What?", ("It.",))
        assert sample.images == (Path("a.png"),)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.png", "conversations": []}, "not a list of turns"),
        ({"image": "a.png", "conversations": "Hi"}, "not a list of turns"),
        ({"image": "a.png", "conversations": None}, "not a list of turns"),
        ({"image": "a.png", "conversations": ["Hi"]}, "not a JSON object"),
        ({"image": "a.png", "conversations": [{"from": "gpt", "value": "A cat."}]}, "no turn"),
        ({"image": "a.png", "conversations": [{"from": "tool", "value": "A cat."}]}, "'tool'"),
        ({"image": "a.png", "conversations": [{"from": "human"}]}, "neither a text"),
        ({"image": "a.png", "conversations": turns("")}, "there is no question"),
        ({"conversations": turns("Why?")}, "there is no picture"),
        ({"image": "a.png", "messages": [{"role": ["user"], "content": "?"}]}, "neither user"),
    ],
)
def test_a_conversation_that_asks_nothing_fails_alone(row, said):
    assert said in problem(row)


def test_the_system_turn_must_be_the_runs():
    row = {
        "image": "a.png",
        "conversations": [{"from": "system", "value": "Be brief."}, *turns("What?")],
    }
    assert "--system" in problem(row) and "Be brief." in problem(row, settings={"system": "Be"})
    assert samples(row, settings={"system": "Be brief."})[0].question == "What?"


# Requests of a batch


def request(*parts, url="/v1/chat/completions", key="r-1", messages=None, **body):
    content = list(parts) or [{"type": "text", "text": "?"}, image("a.png")]
    messages = messages or [{"role": "user", "content": content}]
    body = {"model": "m", "messages": messages, **body}
    return {"custom_id": key, "method": "POST", "url": url, "body": body}


def image(url, **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words):
    return {"type": "text", "text": words}


def test_a_request_is_a_question_and_its_body_does_not_ride_along():
    (sample,) = samples(request(image(URI, detail="low"), text("What is it?"), text("Be brief.")))
    assert (sample.id, sample.question, sample.problem) == ("r-1", "What is it?\nBe brief.", "")
    assert sample.extra == {"custom_id": "r-1"} and len(sample.names[0]) < 100
    assert load_image(sample.images[0])[0].getpixel((0, 0)) == (9, 8, 7)


def test_pictures_between_the_words_keep_their_places():
    parts = (text("Is"), image("a.png"), text("like"), image("b.png"))
    (sample,) = samples(request(*parts))
    assert sample.question == "Is\n<image>\nlike\n<image>"
    assert sample.images == (Path("a.png"), Path("b.png"))


def test_a_local_file_of_a_request_lies_within_the_root():
    inside = Path("sub dir/a.png").absolute().as_uri()
    assert samples(request(text("?"), image(inside)))[0].images == (
        Path("sub dir/a.png").absolute(),
    )
    assert "--allow-outside" in problem(request(text("?"), image("file:///etc/a.png")))


SETTINGS = {"max_new_tokens": 64, "temperature": 0.0, "seed": 0, "top_p": None, "greedy": False}


@pytest.mark.parametrize(
    ("body", "flag"),
    [
        ({"max_tokens": 32}, "add --max-new-tokens 32"),
        ({"max_completion_tokens": 32}, "add --max-new-tokens 32"),
        ({"temperature": 0.7}, "add --temperature 0.7"),
        ({"n": 2}, "body.n is 2"),
        ({"stop": ["."]}, "body.stop"),
        ({"tools": []}, "body.tools"),
        ({"response_format": {"type": "json_object"}}, "body.response_format"),
        ({"frequency_penalty": 0.5}, "body.frequency_penalty"),
    ],
)
def test_what_a_request_asks_and_the_run_does_not_do_fails_it(body, flag):
    assert flag in problem(request(**body), settings=SETTINGS)


def test_what_a_request_asks_and_the_run_does_is_answered():
    body = {"max_tokens": 64, "temperature": 0, "top_p": 0.5, "seed": 7, "n": 1, "stream": False}
    assert samples(request(**body, stop=None), settings=SETTINGS)[0].problem == ""
    greedy = {**SETTINGS, "temperature": None, "greedy": True}
    assert samples(request(temperature=0), settings=greedy)[0].problem == ""
    sampled = {**SETTINGS, "temperature": 0.7}
    assert "--seed 7" in problem(request(temperature=0.7, seed=7), settings=sampled)
    assert "--max-new-tokens" in problem(request(max_tokens=64))


def test_a_file_whose_requests_all_ask_the_same_is_refused_with_the_flag_to_add():
    Path("b.jsonl").write_text((json.dumps(request(max_tokens=9)) + "\n") * 3)
    with pytest.raises(UsageError, match="add --max-new-tokens 9"):
        read_questions("b.jsonl")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (request(url="/v1/embeddings"), "/v1/embeddings"),
        (request(url=None), "nothing"),
        ({"custom_id": 1, "body": None}, "body is not a JSON object"),
        ({"custom_id": 1, "body": {}}, "not a list of turns"),
        (request(messages=[{"role": "user", "content": "?"}] * 2), "one message of the user"),
        (request(messages=[{"role": "assistant", "content": "?"}]), "one message of the user"),
        (request({"type": "input_audio", "input_audio": {}}), "input_audio"),
        (request({"type": "image_url"}), "image_url"),
        (request("words"), "no type"),
        (request(text("no picture")), "there is no picture"),
        (request(text("?"), image("http://127.0.0.1:9/a.png")), "--allow-urls"),
        (request(text("?"), image("data:image/png;base64,A*B")), "damaged"),
    ],
)
def test_a_request_that_cannot_be_answered_fails_alone(row, said):
    assert said in problem(row)


# Pictures that a row holds itself, and addresses


@pytest.mark.parametrize(
    "uri",
    [
        URI,
        URI.replace("data:image/png", "DATA:"),
        URI.replace("+", "%2B").replace("/", "%2F"),
        URI[:-1] if URI.endswith("=") else URI,
        URI[:40] + "\r\n" + URI[40:],
        "data:image/png," + "".join(f"%{byte:02x}" for byte in png()),
    ],
)
def test_a_data_uri_is_the_picture_in_it(uri):
    (sample,) = samples({"image": uri, "text": "?"})
    assert isinstance(sample.images[0], Held) and sample.images[0].content == png()


def test_addresses_are_kept_for_the_run_where_that_is_allowed():
    url = "https://127.0.0.1:9/a.png?x=1"
    assert "--allow-urls" in problem({"image": url, "text": "?"})
    (sample,) = samples({"image": [url, "a.png"], "text": "?"}, allow_urls=True)
    assert sample.images == (Address(url), Path("a.png")) and sample.names == (url, "a.png")
    assert "not fetched" in problem({"image": "ftp://x/a.png", "text": "?"}, allow_urls=True)


def test_addresses_and_data_uris_among_named_files_and_in_lists():
    Path("a.png").write_bytes(png())
    Path("list.txt").write_text(f"a.png\nhttps://x/b.png\n{URI}\n")
    url = "https://x/b.png"
    for sources in (["a.png", url, URI], ["@list.txt"]):
        found = list(read_images(sources, allow_urls=True).samples)
        assert [sample.images[0] for sample in found[:2]] == [Path("a.png"), Address(url)]
        assert found[2].images[0].content == png() and not any(s.problem for s in found)
    refused = list(read_images(["@list.txt"]).samples)
    assert "--allow-urls" in refused[1].problem and refused[2].images[0].content == png()
    with pytest.raises(UsageError, match="--allow-urls"):
        read_images([url])
