"""Answers and samples, joined by what they say: ids, pictures and questions, and never by line.

An answer belongs to the sample of its id, if nothing else that it says speaks against that; else to
the samples of its picture and its question. Knows no data set, no file and no metric.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from trimtok_cli.blobs import Blob
from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.answer_files import Answer
from trimtok_cli.evaluation.datasets.asking import question_alone
from trimtok_cli.wording import brief

# COCO's pictures are called by their number in some lists, and by split and number in others.
_COCO = re.compile(r"COCO_\w+_(\d{12})")

_PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|txt)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Joined:
    """pairs: each sample that was answered, with its answer, in the order of the samples.

    missing: samples without an answer; foreign: answers without a sample.
    """

    pairs: tuple[tuple[Sample, str], ...]
    missing: tuple[Sample, ...]
    foreign: tuple[Answer, ...]

    @property
    def total(self) -> int:
        return len(self.pairs) + len(self.missing)


def join(samples: Sequence[Sample], answers: Iterable[Answer]) -> Joined:
    """Every answer with its sample. UsageError where a sample has several, or a text is a question.

    An answer by picture and question serves all samples that ask the same.
    """
    index = Index(samples)
    given: dict[int, list[Answer]] = defaultdict(list)
    sharing: dict[int, int] = {}
    foreign = []
    for answer in answers:
        numbers = index.find(answer)
        for number in numbers:
            given[number].append(answer)
            sharing[number] = max(sharing.get(number, 0), len(numbers))
        if not numbers:
            foreign.append(answer)
    for number, several in given.items():
        _refuse_several(samples[number], several, sharing[number])
    pairs = tuple((sample, given[i][0].text) for i, sample in enumerate(samples) if i in given)
    _refuse_questions(pairs)
    missing = tuple(sample for i, sample in enumerate(samples) if i not in given)
    return Joined(pairs, missing, tuple(foreign))


def _refuse_several(sample: Sample, answers: Sequence[Answer], sharing: int) -> None:
    """Refuses more answers than there are samples that ask the same, and answers that differ."""
    texts = {answer.text for answer in answers}
    if len(answers) <= sharing and len(texts) == 1:
        return
    places = " and ".join(answer.place for answer in answers[:2])
    raise UsageError(
        f"question {brief(sample.id)} is answered {len(answers)} times ({places}); keep one answer "
        "to each question."
    )


def _refuse_questions(pairs: Sequence[tuple[Sample, str]]) -> None:
    """Refuses a file of questions, whose `text` is what is asked."""
    asked = [question_alone(str(sample.extra.get("question") or "")) for sample, _ in pairs]
    same = [
        text
        for text, (_, answer) in zip(asked, pairs, strict=True)
        if text and text == question_alone(answer)
    ]
    if pairs and len(same) > len(pairs) / 2:
        raise UsageError(
            "what stands under text are the questions themselves; name the file of the answers."
        )


class Index:
    """The samples by id, by picture and by question."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.questions = [question_alone(str(each.extra.get("question") or "")) for each in samples]
        self.pictures = [
            {
                _picture(name)
                for name, medium in zip(each.names, each.images, strict=False)
                if not isinstance(medium, Blob)
            }
            for each in samples
        ]
        self.by_id: dict[str, list[int]] = defaultdict(list)
        self.by_picture: dict[str, list[int]] = defaultdict(list)
        self.by_question: dict[str, list[int]] = defaultdict(list)
        for number, sample in enumerate(samples):
            self.by_id[_plain_id(str(sample.id))].append(number)
            for picture in self.pictures[number]:
                self.by_picture[picture].append(number)
            if question := self.questions[number]:
                self.by_question[question].append(number)

    def find(self, answer: Answer) -> list[int]:
        """The numbers of the samples that an answer is to."""
        question = question_alone(answer.question)
        pictures = {_picture(name) for name in answer.images}
        candidates = [
            number
            for number in self.by_id.get(_plain_id(answer.id), ())
            if self._fits(number, question, pictures)
        ]
        if not candidates:
            shown = pictures or {_picture(answer.id)}
            candidates = [
                number
                for number in dict.fromkeys(
                    n for each in shown for n in self.by_picture.get(each, ())
                )
                if self._fits(number, question, shown) and (question or not self.questions[number])
            ]
        if not candidates and question and len(alone := self.by_question.get(question, ())) == 1:
            candidates = [number for number in alone if self._fits(number, question, pictures)]
        return self._nearest(candidates, question, answer.category)

    def _fits(self, number: int, question: str, pictures: set[str]) -> bool:
        """Whether neither question nor picture speaks against a sample."""
        own, shown = self.questions[number], self.pictures[number]
        return (not question or own in question) and (
            not pictures or not shown or bool(shown & pictures)
        )

    def _nearest(self, candidates: list[int], question: str, category: str) -> list[int]:
        """Of samples that fit, those whose question is nearest, then those of the category."""
        if len(candidates) < 2:
            return candidates
        if question:
            longest = max(len(self.questions[number]) for number in candidates)
            candidates = [each for each in candidates if len(self.questions[each]) == longest]
        own = [each for each in candidates if self.samples[each].extra.get("category") == category]
        return own or candidates


def _plain_id(key: str) -> str:
    """An id as it is compared: without a picture's ending and the folder `images`."""
    return _PICTURE.sub("", key.replace("/images/", "/")).strip()


def _picture(name: str) -> str:
    """A picture's name as it is compared: without folder and ending; COCO's as its number."""
    stem = _PICTURE.sub("", PurePosixPath(name.replace("\\", "/")).name)
    coco = _COCO.fullmatch(stem)
    return coco[1] if coco else stem
