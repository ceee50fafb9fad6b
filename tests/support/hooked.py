"""A preprocessor that does harm when it is asked to, for the tests of worker processes."""

import os
import signal
import sys
import time
from dataclasses import replace

import torch

from trimtok_cli.errors import ModelError
from trimtok_cli.media import video
from trimtok_cli.models.inputs import Inputs
from trimtok_cli.models.preprocessor import Preprocessor

HANGS = (
    "import os, time; from pathlib import Path; from trimtok_cli.media import decoder_child "
    "as child; read = child.DECODERS['decord']; "
    "hang = lambda path: (Path(path + '.pid').write_text(str(os.getpid())), time.sleep(60)); "
    "child.DECODERS['decord'] = lambda path, *rest: hang(path) if 'hang' in path else "
    "read(path, *rest); child.main()"
)


ENDLESS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"


class Hooked(Preprocessor):
    """Does what the question says; the inputs' `words` are the id of the process."""

    def __setstate__(self, state) -> None:
        vars(self).update(state)
        video._CHILD = HANGS

    def prepare(self, images, question: str, **options) -> Inputs:
        if question == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if question == "die once" and not os.path.exists("died"):
            open("died", "x").close()
            os._exit(7)
        if question == "sleep":
            time.sleep(60)
        if question == "refuse":
            raise ModelError("this model cannot.")
        if question == "endless":
            template = self.processor.chat_template
            self.processor.chat_template = ENDLESS
            try:
                return super().prepare(images, "What?", **options)
            finally:
                self.processor.chat_template = template
        if question == "memory":
            import resource

            limit = resource.getrlimit(resource.RLIMIT_AS)
            # Less than the libraries take.
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, limit[1]))
            try:
                torch.ones(1 << 28)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limit)
        if question in ("local", "half"):
            inputs = super().prepare(images, question, **options)

            # A local function cannot be pickled; bfloat16 is no type of numpy.
            def local() -> None: ...

            extra = local if question == "local" else torch.arange(3, dtype=torch.bfloat16)
            return replace(inputs, tensors=inputs.tensors | {"extra": extra})
        if question == "print":
            print("nonsense", flush=True)
            os.write(1, b"more nonsense")
            sys.stdout.flush()
        return replace(super().prepare(images, question, **options), words=str(os.getpid()))
