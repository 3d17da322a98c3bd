"""Coverage-guided fuzzing of what strangers hand in: `python bench/fuzz.py TARGET [--seconds 600] [--out FOLDER]`.

Targets are bodies (of HTTP requests), lines (traces, records and problems), answers (against golds) and tensors
(predictors and labels). atheris has to be installed beside the package (`pip install atheris`); nothing else needs it.
Every input may raise the errors that are promised and nothing else, may take so many seconds and bytes, and what was
read must be the same once it is written and read again. FOLDER gets the corpus, which a later run goes on from, and one
input for each place where that fails. Inputs worth keeping stand in tests/corpora/TARGET, where a test replays them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CORPORA = Path(__file__).parent.parent / "tests" / "corpora"
LIMIT_SECONDS = 2.0  # of CPU for one input
LIMIT_BYTES = 300 * 2**20  # that one input may add to the process's peak
MOST_CHARACTERS = 2000  # of a message: it is a sentence
DEEP = "the place of something deep"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is fuzzed.

    Attributes:
        run: takes an input; raises whatever is not promised.
        seeds: whole inputs to begin with.
        words: pieces that inputs are made of.
        most_bytes: of an input.
        unpack: an input as something like JSON, and what makes an input of the like again; None: it is no such thing.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    most_bytes: int = 20_000
    unpack: Callable[[bytes], tuple[Any, Callable[[str], bytes]]] | None = None


def told(error: Exception) -> None:
    """Check that an error that was promised is a sentence, which can be printed."""
    text = str(error)
    assert 0 < len(text) <= MOST_CHARACTERS, f"a message of {len(text)} characters"
    text.encode()


def bodies() -> Target:
    """Bodies of both endpoints up to the requests of the engine; what stands before a NUL is the type of the body."""
    from leanthink.entrypoints.openai.error_responses import APIError
    from leanthink.entrypoints.openai.protocol import Asked, ChatBody, TextBody
    from leanthink.entrypoints.openai.request_bodies import parse
    from leanthink.entrypoints.openai.request_parsing import RequestParser
    from leanthink.entrypoints.openai.settings import Settings
    from leanthink.models.loading import load
    from leanthink.policies.budget import Budget

    model, tokenizer = load("tiny")
    parser = RequestParser(model, tokenizer, Settings(name="tiny", budget=Budget(slots=64)), largest=2000)
    vocabulary = len(model.get_input_embeddings().weight)

    def run(data: bytes) -> None:
        head, nul, body = data.partition(b"\0")
        content_type, body = (head.decode("latin-1"), body) if nul else ("application/json", data)
        for kind in (ChatBody, TextBody):
            try:
                one(kind, body, content_type)
            except APIError as refusal:
                refused(refusal)

    def refused(refusal: APIError) -> None:
        assert 400 <= refusal.status < 500, refusal.status
        told(refusal)
        refusal.response()

    def one(kind: type[ChatBody | TextBody], body: bytes, content_type: str) -> None:
        asked = parse(kind, body, content_type)
        for request in parser.parse(asked):
            assert request.bound <= parser.largest
            assert all(0 <= token < vocabulary for token in request.prompt_ids)
        again = parse(kind, written(asked), "application/json")
        assert written(again) == written(asked), "another body after it was written and read"

    def written(asked: Asked) -> bytes:
        plain = asked.model_dump(exclude={"chat_template_kwargs"})  # which holds anything
        return json.dumps(plain, allow_nan=False).encode()

    message = {"role": "user", "content": "2 + 2"}
    asked = {"model": "tiny", "max_tokens": 5, "seed": 1, "temperature": 0.6, "top_p": 0.9, "stop": ["x"], "n": 1}
    told_again = {"role": "assistant", "content": None, "reasoning": "r", "refusal": "no"}
    part = {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "b"}
    documents: tuple[Any, ...] = (
        {**asked, "messages": [message]},
        {**asked, "messages": [message, told_again, part], "logprobs": True, "top_logprobs": 2},
        {"model": "tiny", "messages": [message], "reasoning_effort": "none", "chat_template_kwargs": {"a": [1]}},
        {"model": "tiny", "messages": [message], "stream": True, "stream_options": {"include_usage": True}},
        {**asked, "prompt": "a<think>b"},
        {**asked, "prompt": ["a", "b"], "policy": "window", "budget": 9, "recent_window": 2, "eviction_interval": 3},
        {**asked, "prompt": [1, 2], "logprobs": 2, "kv_events": True, "stream": True, "max_answer_slots": 4},
        {**asked, "prompt": [[1, 2], [3]], "user": "u", "tools": [], "response_format": {"type": "text"}},
    )
    names = {*ChatBody.model_fields, *TextBody.model_fields, *Asked.neutral}
    words = [json.dumps(name).encode() + b":" for name in sorted(names)]
    kinds = (b"application/json; charset=x\0", b"text/plain\0", b"application/x+json; a*=b''c\0")
    return Target(
        run=run,
        seeds=(*texts(documents), *(kind + next(texts(documents[:1])) for kind in kinds)),
        words=(*words, *kinds, *JSON_WORDS),
        unpack=plain_json,
    )


def lines() -> Target:
    """Lines of traces, of an evaluation's records and of problems, and the files that hold them."""
    from leanthink.data.problems import read_problems
    from leanthink.data.traces.token_scores import pack
    from leanthink.data.traces.trace import Trace, TraceWriter, from_line, read_traces, to_line
    from leanthink.eval import records
    from leanthink.utils.errors import LeanThinkError

    folder = scratch()
    path = folder / "lines.jsonl"
    birth = {"commit": "c"}

    def run(data: bytes) -> None:
        for read, write in ((from_line, to_line), (records.from_line, written)):
            with promised(LeanThinkError):
                found: Any = read(data)
                line = write(found)
                assert "\n" not in line
                assert read(line.encode()) == found, "another after it was written and read"
        for use in (read_traces, read_problems, resumed, gone_on, header):
            path.write_bytes(data)
            with promised(LeanThinkError):
                use(path)

    def written(record: records.Record) -> str:
        return json.dumps(asdict(record), allow_nan=False)

    def resumed(path: Path) -> None:
        before = path.read_bytes()
        with TraceWriter(path, resume=True) as writer:
            assert writer.done == read_traces(path)
        after = path.read_bytes()
        assert before.startswith(after.removesuffix(b"\n")), "lines were changed"

    def gone_on(path: Path) -> None:
        (folder / records.RUN).unlink(missing_ok=True)
        (folder / records.RECORDS).write_bytes(b"")
        with records.RunFolder(folder, {}, {}, birth):
            pass
        (folder / records.RECORDS).write_bytes(path.read_bytes())
        with records.RunFolder(folder, {}, {}, birth) as found:
            assert all(key == record.key for key, record in found.done.items())

    def header(path: Path) -> None:
        (folder / records.RUN).write_bytes(path.read_bytes())
        found = records.read_header(folder)
        records.check_header(found)
        (folder / records.RECORDS).write_bytes(b"")
        for settings in (found["settings"], {"another": 1}):
            with records.RunFolder(folder, settings, found["benchmarks"], birth):
                pass

    counts = dict.fromkeys(("peak_slots", "kept_slots", "evictions", "peak_kv_bytes"), 1)
    trace = Trace(
        id="p", sample=0, problem="1+1", gold="2", model="m", policy="horizon", budget={"slots": 4}, seed=1,
        temperature=0.5, prompt_ids=(1, 2), token_ids=(3, 4, 5), text="a2b", thought_tokens=2, answer_tokens=1,
        finish_reason="stop", correct=True, full_kv_bytes=9, evicted_at=(2, None, None), token_chars=(1, 1, 1),
        scores=pack((2,), b"\0" * 6), fingerprint="f", **counts,
    )  # fmt: skip
    record = records.Record(
        cell="c", id="p", sample=0, seed=1, right=True, finished=True, vote="2", answer="2", prompt_tokens=2,
        thought_tokens=2, answer_tokens=1, slot_steps=1, start=0, seconds=0.5, **counts,
    )  # fmt: skip
    problem = {"id": 1, "problem": "1+1", "answer": 2}
    head = {"eval": records.VERSION, "settings": {"a": 1}, "benchmarks": {"b": {"problems": 1}}, "births": [birth]}
    line = to_line(trace)
    seeds = (line, line + "\n" + line[:40], written(record), json.dumps(problem), json.dumps(head))
    words = [json.dumps(name).encode() + b":" for name in sorted({*asdict(trace), *asdict(record), *head})]
    return Target(
        run=run,
        seeds=tuple(seed.encode() for seed in seeds),
        words=(*words, b"\n", *JSON_WORDS),
        unpack=plain_json,
    )


def answers() -> Target:
    """What follows a thought against a gold, which is the first line; all that runs before a parser of formulas."""
    from leanthink.data.grading.answer_extraction import answer_section, last_boxed
    from leanthink.data.grading.answer_normalisation import EXACT, Tolerance
    from leanthink.data.grading.grading import check_gold
    from leanthink.data.grading.verdict import MOST_CHARACTERS as MOST
    from leanthink.data.grading.verdict import verdict
    from leanthink.data.tasks import registry
    from leanthink.utils.errors import LeanThinkError

    asked = [problem for name in sorted(registry.FAMILIES) for problem in registry.sample(name, 1, 1, 0)]
    no_formula = lambda given, gold, tolerance: False  # noqa: E731

    def run(data: bytes) -> None:
        gold, _, text = data.decode(errors="surrogateescape").partition("\n")
        section = answer_section(text, think_tags=False)
        assert section is not None
        tolerance = (EXACT, Tolerance(relative=0.01, absolute=0.5))[len(data) % 2]
        found = verdict(section, gold, tolerance, no_formula)
        assert json.loads(json.dumps(found)) == list(found)
        for problem in asked:
            registry.is_correct(problem, last_boxed(section))
        with promised(LeanThinkError):
            check_gold(gold)
            box = rf"\boxed{{{gold}}}"
            if last_boxed(box) == gold and len(gold) <= MOST and "boxed" not in gold and "fbox" not in gold:
                assert verdict(box, gold, EXACT, no_formula).right, "a gold is not its own answer"

    pairs = (
        (r"\frac{1}{2}", r"so \boxed{0.5} and \boxed{\dfrac12}"), ("5", "the answer is **5 cm**."),
        ("B", r"\text{(B)} 12"),
        (r"(-\infty, 2] \cup \{3, 4\}", r"\[x \leq 2\] or $x \in \{3, 4\}$"), ("x=1,y=2", "#### (x, y) = (1, 2)"),
        ("1101_2", r"</think>\boxed{1101_{\text{two}}}"), (r"3 \equiv 1 \pmod{2}", r"\fbox{x \equiv 1 (mod 2)}"),
        ("1,234,567", "1.234567 million"), (r"0.1\overline{6}", "0.1(6) = 0.1666..."),
        (r"1 \pm \sqrt{2}", "1±√(2), ½, x²"),
        ("50%", "3:4:5 is 2 square feet, 33 1/3 dollars or 1e5"),
    )  # fmt: skip
    words = {word for pair in pairs for word in re.findall(r"\\?[A-Za-z]+|\\.|\d+|\S", " ".join(pair))}
    return Target(
        run=run,
        seeds=tuple("\n".join(pair).encode() for pair in pairs),
        words=(*(word.encode() for word in sorted(words)), b" ", b"\n", b"\xff", "\u0305²⁰ₓ¼\u00a0".encode()),
        most_bytes=4000,  # what takes long takes more of the fuzzer's time than of the limit
    )


def tensors() -> Target:
    """Files of predictors and of labels: their header as JSON, and bytes after it."""
    import torch

    from leanthink.importance import label_file
    from leanthink.models.predictor import predictor_of, read_metadata, save_predictor
    from leanthink.utils.errors import LeanThinkError

    path = scratch() / "file.safetensors"
    config = SimpleNamespace(hidden_size=4, vocab_size=20, num_hidden_layers=2, num_attention_heads=2,
                             num_key_value_heads=1, head_dim=2, model_type="qwen3")  # fmt: skip

    def run(data: bytes) -> None:
        path.write_bytes(data)
        for use in (predicted, labelled):
            with promised(LeanThinkError):
                use()

    def predicted() -> None:
        metadata = read_metadata(path)
        for ours in ("f", "another"):
            with promised(LeanThinkError):
                found = predictor_of(path, ours, config, ignore_predictor_mismatch=True)
                states_NWF = torch.zeros(2, len(found.offsets), 2 * config.hidden_size)
                shape = (2, found.num_sets * max(1, len(found.horizons)))
                assert metadata["hidden_size"] != config.hidden_size or found(states_NWF).shape == shape
                again = path.with_name("again.safetensors")
                save_predictor(found, again, base_fingerprint=metadata["fingerprint"], data=metadata["data"],
                               metrics=metadata["metrics"], base_shape=metadata["base_shape"])  # fmt: skip
                written = read_metadata(again)
                written.pop("format", None)  # of the package that wrote it
                assert written == {name: metadata[name] for name in written}, "another after it was written and read"

    def labelled() -> None:
        found = label_file.read_labels(path)
        for key, values_TC in found.labels.items():
            assert values_TC.dtype == torch.float32
            assert values_TC.shape == (len(values_TC), 1 + len(found.horizons))
            assert isinstance(found.checksums[key], int)
            assert found.granularity == "model" or found.sets[key].dtype == torch.uint8

    words = (b'"F32"', b'"BF16"', b'"I64"', b'"BOOL"', b'"F8_E4M3"', b'"shape":[', b'"__metadata__"', b"sets of ")
    return Target(run=run, seeds=tuple(files(path)), words=(*words, *JSON_WORDS), unpack=safetensors_header)


def files(path: Path) -> Iterator[bytes]:
    """Small predictors and labels of each kind."""
    import torch
    from safetensors.torch import save

    from leanthink.models.predictor import Predictor, save_predictor

    about = {"thought_tokens": 3.5, "tokens": 7, "traces": 2, "recipe": {"tokens_per_trace": 4}}
    shape = {"layers": 2, "kv_heads": 1, "vocab_size": 20}
    for found, data in (
        (Predictor(target="answer", hidden_size=4), {}),
        (Predictor(target="horizon", hidden_size=4, horizons=(2, 8), offsets=(0, 1), width=1), about),
        (Predictor(target="horizon", hidden_size=4, horizons=(2,), granularity="layer", num_sets=2, width=1), {}),
    ):
        save_predictor(found, path, base_fingerprint="f", data=data, metrics={"m": 0.5}, base_shape=shape)
        yield path.read_bytes()
    told = {"leanthink": "labels", "version": "2", "horizons": "[2]", "fingerprint": "f", "checksums": '{"a#0": 1}'}
    labels, sets = {"a#0": torch.zeros(3, 2)}, {"sets of a#0": torch.zeros(2, 3, 1, dtype=torch.uint8)}
    yield save(labels, metadata={**told, "granularity": "model", "answer_from": "null"})
    yield save(labels | sets, metadata={**told, "granularity": "layer", "answer_from": "null"})


def safetensors_header(data: bytes) -> tuple[Any, Callable[[str], bytes]]:
    """The metadata, with what is JSON in its texts as such, and the rest of the header."""
    (size,) = struct.unpack("<Q", data[:8])
    tensors = json.loads(data[8 : 8 + size])
    metadata = tensors.pop("__metadata__", {})
    for name, text in metadata.items():
        with contextlib.suppress(ValueError, TypeError):
            metadata[name] = {"as text": json.loads(text)}

    def framed(text: str) -> bytes:
        found = {"metadata": {}, "tensors": {}, **json.loads(text)}
        for name, value in found["metadata"].items():
            if isinstance(value, Mapping) and "as text" in value:
                found["metadata"][name] = json.dumps(value["as text"])
        head = json.dumps({"__metadata__": found["metadata"], **found["tensors"]}).encode()
        return struct.pack("<Q", len(head)) + head + data[8 + size :]

    return {"metadata": metadata, "tensors": tensors}, framed


TARGETS: dict[str, Callable[[], Target]] = {"bodies": bodies, "lines": lines, "answers": answers, "tensors": tensors}
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 4096, 2**31, 2**53 + 1, 2**63, 10**400, 0.5, -0.0, 1e-45, 1e308, math.inf, math.nan,
    "", "x", "\ud800", "\0", "é\u2028", "x" * 3000, [], [[]], [None], ["x"], [0], [0, 1], {}, {"": 0},
    {"\udfff": "\ud800"}, DEEP,
)  # fmt: skip
JSON_WORDS = (
    *(json.dumps(value).encode() for value in ODD if value != DEEP), b"[" * 1000, b'{"":' * 1000, b"1" * 5000, b"1e400",
    b"\\ud800", b"\xff", b"\xef\xbb\xbf", b",", b":", b"{", b"}", b"[", b"]",
)  # fmt: skip


@contextlib.contextmanager
def promised(kind: type[Exception]) -> Iterator[None]:
    """An error of this kind is what was promised; it has to be a sentence."""
    try:
        yield
    except kind as error:
        told(error)


def scratch() -> Path:
    """A folder in memory where there is one, until the process ends."""
    memory = Path("/dev/shm")
    keep.append(tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None))
    return Path(keep[-1].name)


keep: list[tempfile.TemporaryDirectory[str]] = []


def texts(documents: Iterable[Any]) -> Iterator[bytes]:
    yield from (json.dumps(document).encode() for document in documents)


def plain_json(data: bytes) -> tuple[Any, Callable[[str], bytes]]:
    return json.loads(data), str.encode


def bounded(run: Callable[[bytes], None], data: bytes) -> None:
    """Run one input; raises what it raises, and AssertionError where it takes too many seconds or bytes."""
    seconds, kilobytes = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(data)
    seconds = time.process_time() - seconds
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes) * 1024
    assert seconds <= LIMIT_SECONDS, f"{seconds:.1f} s"
    assert grown <= LIMIT_BYTES, f"{grown} bytes more"


def changed(found: Any, draws: random.Random) -> Any:
    """Something like JSON with another value in one place, or with one place less or more."""
    if not isinstance(found, list | dict) or not found or draws.random() < 0.15:
        return draws.choice(ODD)
    keys = list(found) if isinstance(found, dict) else list(range(len(found)))
    key, how, copy = draws.choice(keys), draws.random(), found.copy()
    if how < 0.1:
        del copy[key]
    elif how < 0.2 and isinstance(copy, list):
        copy.insert(key, copy[draws.choice(keys)])
    elif how < 0.3:
        copy[key] = copy[draws.choice(keys)]
    else:
        copy[key] = changed(found[key], draws)
    return copy


def rewritten(data: bytes, target: Target, draws: random.Random) -> bytes:
    """An input with another value in its JSON."""
    assert target.unpack is not None
    found, pack = target.unpack(data)
    depth = draws.choice((10, 100, draws.randrange(800, 1000), 5000))
    around = draws.choice(("[]", '{"":}'))
    deep = around[:-1] * depth + "0" + around[-1] * depth
    return pack(json.dumps(changed(found, draws)).replace(json.dumps(DEEP), deep))


def spliced(data: bytes, target: Target, draws: random.Random) -> bytes:
    """An input with a word in it, in place of something or not, or with a piece of it many times."""
    start = draws.randrange(len(data) + 1)
    end = min(len(data), start + draws.choice((0, 0, 1, 2, 8, 64)))
    if draws.random() < 0.3 and start < end:
        return data[:start] + data[start:end] * draws.choice((2, 8, 100, 1000)) + data[end:]
    return data[:start] + draws.choice(target.words) + data[end:]


def fuzz(name: str, seconds: int, out: Path) -> None:
    """Fuzz one target; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["leanthink"]):
        target = TARGETS[name]()
    found: set[str] = set()
    corpus, findings = out / "corpus", out / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    kept = [path.read_bytes() for path in sorted((CORPORA / name).glob("*"))]
    for index, seed in enumerate((*target.seeds, *kept)):
        (corpus / f"seed-{index}").write_bytes(seed)

    def once(data: bytes) -> None:
        try:
            bounded(target.run, data)
        except Exception as error:
            at = [frame for frame in traceback.extract_tb(error.__traceback__) if "leanthink" in frame.filename]
            where = f"{at[-1].name}-{at[-1].lineno}" if at else "harness"
            place = re.sub(r"\W", "-", f"{type(error).__name__}-{where}-{str(error)[:12] if not at else ''}")
            if place not in found:
                found.add(place)
                (findings / place).write_bytes(data)
                print(f"FINDING {place}: {' '.join(str(error).split())[:200]}", flush=True)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        draws = random.Random(seed)
        for _ in range(draws.choice((1, 1, 2, 4))):
            how = draws.random()
            if how < 0.5 and target.unpack is not None:
                with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, struct.error):
                    data = rewritten(data, target, draws)
            elif how < 0.8:
                data = spliced(data, target, draws)
            else:
                data = atheris.Mutate(data, len(data) + 8)
        return data[:most]

    options = [f"-max_total_time={seconds}", f"-max_len={target.most_bytes}", "-len_control=0", "-timeout=30",
               "-rss_limit_mb=6000", "-print_final_stats=1", f"-artifact_prefix={findings}/", str(corpus)]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], once, custom_mutator=mutated)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    fuzz(asked.target, asked.seconds, asked.out or Path("fuzz") / asked.target)


if __name__ == "__main__":
    main()
