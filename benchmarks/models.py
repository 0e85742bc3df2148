"""Every model backend against its own library called directly: the same weights, question and threads; and what a choice and a shared beginning cost.

    python benchmarks/models.py [ROUNDS] [BACKEND ...]
"""
import itertools, json, statistics, sys, tempfile, time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from measure import publish
from sagelab.core.settings import load_settings
from sagelab.inference.base import Backend, Message
from sagelab.inference.catalogue import Catalogue

THREADS, CONTEXT = 1, 2048
NUMBER = itertools.count(1)
LONG = " ".join(f"Rule {i}: name the market, the company and the year, and say nothing that the text does not." for i in range(1, 20))
LABELS = ["rising", "falling", "rate cut", "rate rise", "merger", "guidance", "hold", "unclear"]


@dataclass
class Pair:
    "A backend, and its library called directly."
    name: str
    model: Backend
    raw: Callable[[str, int], int]  # (question, most tokens) -> tokens written, greedily; reads the question as far as it is new
    fresh: Callable[[], None] = lambda: None  # makes the backend forget, where the library forgets too
    cpu: bool = True  # what is promised of a choice and a shared beginning holds where reading takes time

    def ours(self, question: str, tokens: int) -> int:
        self.fresh()
        return self.model.complete(question, sampling={"max_tokens": tokens}).usage.completion


def llamacpp(gguf: Path, scratch: Path) -> Iterator[Pair]:
    import xllamacpp
    from sagelab.inference.llamacpp import LlamaCppConfig, LlamaCppModel
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.verbosity, p.warmup = str(gguf), CONTEXT, 1, -1, False
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(p)
    def raw(question: str, tokens: int) -> int:
        said = server.handle_chat_completions({"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0.0})
        return said["usage"]["completion_tokens"]
    with LlamaCppModel(LlamaCppConfig(path=gguf, context=CONTEXT, threads=THREADS)) as model: yield Pair("llamacpp", model, raw)


def of_transformers(device: str) -> Callable:
    def built(gguf: Path, scratch: Path) -> Iterator[Pair]:
        import torch
        from sagelab.inference.transformers import TransformersConfig, TransformersModel, unpack
        if not (scratch/"unpacked").exists(): unpack(gguf, scratch/"unpacked")
        with TransformersModel(TransformersConfig(path=scratch/"unpacked", context=CONTEXT, threads=THREADS, device=device)) as model:
            engine = model._engine
            def raw(question: str, tokens: int) -> int:
                given = engine.tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True).to(device)
                with torch.inference_mode(): said = engine.model.generate(**given, max_new_tokens=tokens, do_sample=False)
                return said.shape[1] - given["input_ids"].shape[1]
            before = torch.get_num_threads()
            torch.set_num_threads(THREADS)
            try: yield Pair("transformers" if device == "cpu" else f"transformers on {device}", model, raw, engine.restart, device == "cpu")
            finally: torch.set_num_threads(before)
    return built


def onnx(gguf: Path, scratch: Path) -> Iterator[Pair]:
    from sagelab.inference.onnx import OnnxConfig, OnnxModel, convert
    from sagelab.inference.transformers import unpack
    if not (scratch/"unpacked").exists(): unpack(gguf, scratch/"unpacked")
    with OnnxModel(OnnxConfig(path=convert(scratch/"unpacked", scratch/"onnx", "fp32"), context=CONTEXT, threads=THREADS)) as model:
        engine = model._engine
        def raw(question: str, tokens: int) -> int:
            given = engine.library.GeneratorParams(engine.model)
            given.set_search_options(max_length=CONTEXT, do_sample=False)
            generator = engine.library.Generator(engine.model, given)
            text = engine.tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": question}]), add_generation_prompt=True)
            generator.append_tokens(engine.tokenizer.encode(text))
            stream, written = engine.tokenizer.create_stream(), 0
            while not generator.is_done() and written < tokens:
                generator.generate_next_token()
                stream.decode(generator.get_next_tokens()[0])
                written += 1
            return written
        yield Pair("onnx", model, raw, engine.restart)


def llamacpp_python(gguf: Path, scratch: Path) -> Iterator[Pair]:
    from llama_cpp import Llama
    from sagelab.inference.nativellama import NativeLlamaConfig, NativeLlamaModel
    # Its prompts take every core unless both are said.
    library = Llama(str(gguf), n_ctx=CONTEXT, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
    def raw(question: str, tokens: int) -> int:
        said = library.create_chat_completion([{"role": "user", "content": question}], max_tokens=tokens, temperature=0.0)
        return said["usage"]["completion_tokens"]
    try:
        with NativeLlamaModel(NativeLlamaConfig(path=gguf, context=CONTEXT, threads=THREADS)) as model: yield Pair("llamacpp-python", model, raw)
    finally: library.close()


def mlx(gguf: Path, scratch: Path) -> Iterator[Pair]:
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from sagelab.inference.mlx import MlxConfig, MlxModel
    with MlxModel(MlxConfig(path=gguf, context=CONTEXT)) as model:
        engine = model._engine
        def raw(question: str, tokens: int) -> int:
            given = engine.encode(engine.prompt([Message("user", question)]))
            return engine._there(lambda: sum(1 for _ in generate_step(mx.array(given), engine._held["network"], max_tokens=tokens)))
        yield Pair("mlx", model, raw, engine.restart)


# A backend joins with a line: its name, the module that it stands on, and what yields its Pair.
BACKENDS = {"llamacpp": ("xllamacpp", llamacpp), "transformers": ("torch", of_transformers("cpu")), "onnx": ("onnxruntime_genai", onnx),
            "llamacpp-python": ("llama_cpp", llamacpp_python), "mlx": ("mlx_lm", mlx)}
SLOW = () if sys.platform == "darwin" else ("mlx",)  # made for another machine: measured where it is named
if find_spec("torch"):
    import torch
    if torch.cuda.is_available(): BACKENDS["cuda"] = ("torch", of_transformers("cuda"))


def seconds_a_token(work: Callable[[str, int], int], question: str, tokens: int) -> float:
    begun = time.perf_counter()
    written = work(question, tokens)
    return (time.perf_counter() - begun) / max(written, 1)


def spread(ratios: list[float]) -> dict: return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rounds": len(ratios)}


def against_raw(pair: Pair, question: str, tokens: int, rounds: int) -> dict:
    "The library's seconds over ours, in turn; who begins changes."
    found: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        asked = f"{next(NUMBER)}. {question}"
        works = [pair.ours, pair.raw]
        both = {work: seconds_a_token(work, asked, tokens) for work in (works if turn % 2 else works[::-1])}
        if turn: found.append((both[pair.ours], both[pair.raw]))
    return spread([raw / ours for ours, raw in found]) | {"ours": statistics.median(ours for ours, _ in found), "raw": statistics.median(raw for _, raw in found)}


def choice(pair: Pair, count: int, rounds: int) -> dict:
    "Seconds of a choice over those of one word, the question new to both."
    def timed(work: Callable[[str], object]) -> float:
        begun = time.perf_counter()
        work(f"{next(NUMBER)}. {LONG[:600]} The bank lowered its rate, and the shares of Oracle rose by 7 %. What is it? Answer with one word.")
        return time.perf_counter() - begun
    found = [(timed(lambda q: pair.model.choose(q, LABELS[:count])), timed(lambda q: pair.model.complete(q, sampling={"max_tokens": 1}))) for _ in range(rounds + 1)]
    return spread([chosen / asked for chosen, asked in found[1:]])


def shared(pair: Pair, rounds: int) -> dict:
    "Seconds to the first word: a new beginning over one that was read, with other questions behind it."
    ratios, known = [], []
    for _ in range(rounds + 1):
        rules = Message("system", f"{next(NUMBER)}. {LONG}")
        cold, warm = (pair.model.complete([rules, Message("user", end)], sampling={"max_tokens": 2}) for end in ("What is a bond?", "Who buys shares?"))
        ratios.append(cold.first_token_seconds / warm.first_token_seconds)
        known.append((warm.usage.cached, warm.usage.prompt))
    return spread(ratios[1:]) | {"cached": known[-1][0], "prompt": known[-1][1]}


def shown(found: dict) -> str: return f"{found['ratio']:.2f}x ({found['low']:.2f} .. {found['high']:.2f})"


def rows_of(pair: Pair, rounds: int, details: dict) -> list[dict]:
    "All figures of one backend."
    reads, writes = against_raw(pair, LONG, 1, rounds), against_raw(pair, "Write a very long story about a bank.", 48, rounds)
    prompt = pair.model.complete(f"{next(NUMBER)}. {LONG}", sampling={"max_tokens": 1}).usage.prompt
    details[pair.name] = {"notes": pair.model.about.notes, "reads": reads | {"tokens_per_second": prompt / reads["ours"]}, "writes": writes | {"tokens_per_second": 1 / writes["ours"]}}
    rows = [{"what": f"{pair.name}: reads", "figure": f"{shown(reads)}, {prompt / reads['ours']:,.0f} tokens/s", "wanted": ">= 0.97x its library", "met": reads["ratio"] >= 0.97},
            {"what": f"{pair.name}: writes", "figure": f"{shown(writes)}, {1 / writes['ours']:,.0f} tokens/s", "wanted": ">= 0.97x its library", "met": writes["ratio"] >= 0.97}]
    if not pair.cpu: return rows
    for count in (2, 4, 8):
        cost = details[pair.name][f"choice of {count}"] = choice(pair, count, rounds)
        rows.append({"what": f"{pair.name}: a choice of {count}", "figure": shown(cost), "wanted": "<= 1.5 calls", "met": cost["ratio"] <= 1.5})
    warm = details[pair.name]["shared beginning"] = shared(pair, rounds)
    rows.append({"what": f"{pair.name}: first word, {warm['cached']} of {warm['prompt']} tokens known", "figure": shown(warm) + " sooner", "wanted": ">= 10x", "met": warm["ratio"] >= 10})
    return rows


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    asked = sys.argv[2:] or [name for name in BACKENDS if name not in SLOW]
    gguf = Catalogue(load_settings()).get("smollm2").weights
    rows, details = [], {"threads": THREADS, "missing": [name for name in asked if not find_spec(BACKENDS[name][0])], "not asked": [name for name in BACKENDS if name not in asked]}
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked:
            if name in details["missing"]: continue
            with ExitStack() as stack:
                pairs = BACKENDS[name][1](gguf, Path(scratch))
                stack.callback(pairs.close)
                rows += rows_of(next(pairs), rounds, details)
    for name in details["missing"]: print(f"left out: {name}, for {BACKENDS[name][0]} is not installed")
    # A few of them do not stand in for all.
    return publish("-".join(["models", *sys.argv[2:]]), rows, **details)


if __name__ == "__main__": sys.exit(main())
