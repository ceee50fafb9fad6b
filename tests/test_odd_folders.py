"""What a checkpoint's folder says in place of what belongs there is one sentence that names the file or the part."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import picture
from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.models import fitting, load_model


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def template(value):
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        edit(folder / "chat_template.json", chat_template=value)

    return change


NESTED = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}x"
FOLDERS = {
    "a number as the template": (template(5), "chat template is a int"),
    "a list as the template": (template([{"name": "default", "template": "x"}]), "chat template is a list"),
    "a template without end": (template(NESTED), "chat template writes for more than 1 seconds"),
    "no processor, only words": (
        lambda f: edit(f / "processor_config.json", processor_class="Unknown", auto_map="evil.Processor"), "is only a .*without tokenizer",
    ),
    "an assistant": (lambda f: edit(f / "generation_config.json", assistant_model="x"), r"its generation_config\.json cannot be read.*assistant"),
    "a compiler": (lambda f: edit(f / "generation_config.json", compile_config={"backend": "x"}), r"its generation_config\.json cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_an_odd_folder_is_one_sentence_that_names_the_part(name, tmp_path, llava_folder, monkeypatch):
    monkeypatch.setattr(fitting, "TEMPLATE_SECONDS", 1)
    folder, (change, words) = tmp_path / "model", FOLDERS[name]
    shutil.copytree(llava_folder, folder)
    change(folder)
    with pytest.raises(ModelError, match=f"cannot be loaded: .*{words}") as found:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(found.value) and len(str(found.value)) < len(str(folder)) + 250


BROKEN = {
    "forbidden": "{{ ''.__class__.__mro__ }}", "a file": "{% include '/etc/passwd' %}", "its own refusal": "{{ raise_exception('no images') }}",
    "a division": "{{ 1 / 0 }}", "a lookup": "{{ messages[9]['content'] }}", "a type": "{{ 1 + 'a' }}",
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_cannot_write_a_question_is_named_as_the_one_at_fault(name, tmp_path, llava_folder):
    folder = tmp_path / "model"
    shutil.copytree(llava_folder, folder)
    (folder / "chat_template.jinja").write_text(BROKEN[name])
    adapter = load_model(str(folder), device="cpu")
    with pytest.raises(SampleError, match=r"the chat template of .* does not write this question"):
        adapter.prepare([picture(1, 60, 60)], "What is it?")
