"""The scorers of LLaVA and lmms-eval, apart from this environment, for comparison.

``python tests/evaluation/oracles.py install FOLDER`` puts the two packages there, without what they depend on (about 5 MB).
``EVOMOE_ORACLES=FOLDER pytest -m slow tests/evaluation/test_oracles.py`` compares. Each question to a scorer is JSON that a
second Python process, which never imports evomoe, reads and answers; it loads the scorers' files by their paths, since
importing the packages would pull in their models.
"""

import ast
import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

PACKAGES = ("llava-torch==1.2.2.post1", "lmms-eval==0.7.3")


def install(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES], check=True
    )


def ask(folder: Path, scorer: str, question: Any) -> Any:
    """What a scorer (one of the functions below) says to a question."""
    run = subprocess.run(
        [sys.executable, __file__, str(folder), scorer], input=json.dumps(question), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


class _Oracles:
    """The second process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        silent = types.SimpleNamespace(info=lambda *_: None, error=lambda *_: None)
        for name in ("requests", "loguru", "lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["loguru"].logger = silent
        for name in ("vqa_eval_metric", "mcq_extract"):
            self.load(f"lmms_eval/tasks/_task_utils/{name}.py", f"lmms_eval.tasks._task_utils.{name}")
        files = types.ModuleType("file_utils")
        files.generate_submission_file = None
        sys.modules["lmms_eval.tasks._task_utils.file_utils"] = sys.modules["lmms_eval.tasks._task_utils"].file_utils = files

    def load(self, path: str, name: str = "loaded") -> Any:
        spec = importlib.util.spec_from_file_location(name, self.folder / path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def evalai(self, texts):
        processor = self.load("llava/eval/m4c_evaluator.py").EvalAIAnswerProcessor()
        plain = [processor.process_digit_article(processor.process_punctuation(text)) for text in texts]
        return [[processor(text) for text in texts], plain]

    def m4c(self, pairs):
        evaluator = self.load("llava/eval/m4c_evaluator.py").TextVQAAccuracyEvaluator()
        with contextlib.redirect_stderr(io.StringIO()):
            return [evaluator.eval_pred_list([{"pred_answer": answer, "gt_answers": ten}]) for answer, ten in pairs]

    def eval_pope(self, pairs):
        """The readings, and what the script prints: F1, accuracy, precision, recall, yes ratio."""
        evaluate = self.load("llava/eval/eval_pope.py").eval_pope
        answers = [{"text": text} for text, _ in pairs]
        with tempfile.NamedTemporaryFile("w") as labels, contextlib.redirect_stdout(io.StringIO()) as printed:
            labels.write("".join(json.dumps({"label": label}) + "\n" for _, label in pairs))
            labels.flush()
            evaluate(answers, labels.name)
        rows = dict(line.split(": ") for line in printed.getvalue().splitlines() if ": " in line)
        return [[answer["text"] for answer in answers], {name: float(value) for name, value in rows.items()}]

    def eval_science_qa(self, items):
        """Of (answer, number of choices, right one, whether it has a picture): the letters, and the two accuracies."""
        with tempfile.TemporaryDirectory() as folder:
            base, numbers = Path(folder), [str(number) for number in range(len(items))]
            problems = {n: {"choices": ["x"] * item[1], "answer": item[2]} for n, item in zip(numbers, items, strict=True)}
            results = [
                {"question_id": n, "text": text, "prompt": "<image>" if image else ""}
                for n, (text, _, _, image) in zip(numbers, items, strict=True)
            ]
            (base / "pid_splits.json").write_text(json.dumps({"test": numbers}))
            (base / "problems.json").write_text(json.dumps(problems))
            (base / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
            script = [sys.executable, str(self.folder / "llava/eval/eval_science_qa.py"), "--base-dir", folder]
            outputs = {f"--{name}": str(base / name) for name in ("output-file", "output-result")}
            files = ["--result-file", str(base / "results.jsonl"), *(part for pair in outputs.items() for part in pair)]
            said = subprocess.run([*script, *files], capture_output=True, text=True, check=True).stdout
            written = json.loads((base / "output-file").read_text())
        parsed = {row["question_id"]: row["parsed_ans"] for rows in written.values() for row in rows}
        right = [row["question_id"] for row in written["correct"]]
        return [[parsed[n] for n in numbers], right, said.strip()]

    def lmms_vqav2(self, pairs):
        process = self.load("lmms_eval/tasks/vqav2/utils.py").vqav2_process_results

        def one(answer, ten):
            doc = {"question_id": 1, "answers": [{"answer": text, "answer_id": i} for i, text in enumerate(ten)]}
            return process(doc, [answer])["exact_match"]

        return [one(answer, ten) for answer, ten in pairs]

    def lmms_textvqa(self, pairs):
        process = self.load("lmms_eval/tasks/textvqa/utils.py").textvqa_process_results
        return [process({"question_id": 1, "answers": list(ten)}, [answer])["exact_match"] for answer, ten in pairs]

    def lmms_gqa(self, pairs):
        """Its metric alone, cut out of a file whose imports are heavy."""
        import string

        import numpy

        tree = ast.parse((self.folder / "lmms_eval/api/metrics.py").read_text())
        wanted = [node for node in tree.body if getattr(node, "name", "") == "exact_match_hf_evaluate"]
        space: dict[str, Any] = {"np": numpy, "string": string}
        exec(compile(ast.Module(wanted, []), "metrics", "exec"), space)
        match = space["exact_match_hf_evaluate"]
        options = {"ignore_case": True, "ignore_punctuation": True}
        return [float(match([answer.strip()], [right], **options)["exact_match"]) for answer, right in pairs]

    def lmms_pope(self, pairs):
        utils = self.load("lmms_eval/tasks/pope/utils.py")
        processed = [utils.pope_process_results({"question_id": 1, "answer": label}, [text]) for text, label in pairs]
        rows = [row["pope_accuracy"] for row in processed]
        names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
        return [[row["prediction"] for row in rows], {name: getattr(utils, f"pope_aggregate_{name}")(rows) for name in names}]

    def lmms_mme(self, texts):
        parse = self.load("lmms_eval/tasks/mme/utils.py").parse_pred_ans
        return [parse(text) for text in texts]

    def lmms_scienceqa(self, items):
        process = self.load("lmms_eval/tasks/scienceqa/utils.py").sqa_process_results
        return [process({"choices": ["x"] * count, "answer": right}, [text])["exact_match"] for text, count, right, _ in items]

    def lmms_prompts(self, items):
        """Of (text, hint, choices): what its tasks ask by default."""
        short = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}
        letter = {"pre_prompt": "", "post_prompt": "\nAnswer with the option's letter from the given choices directly."}
        utils = {name: self.load(f"lmms_eval/tasks/{name}/utils.py") for name in ("vqav2", "textvqa", "pope", "mme", "scienceqa")}
        evaluator = self.load("lmms_eval/tasks/mmbench/mmbench_evals.py").MMBench_Evaluator()

        def one(text, hint, choices):
            doc = {"question": text, "hint": hint, "choices": choices, "ocr_tokens": choices}
            options, _ = evaluator.create_options_prompt(dict(zip("ABCDE", choices, strict=False)), list("ABCDE"))
            return {
                **{name: getattr(utils[name], f"{name}_doc_to_text")(doc, short) for name in ("vqav2", "textvqa", "pope", "mme")},
                "textvqa-ocr": utils["textvqa"].textvqa_doc_to_text(doc, short | {"ocr": True}),
                "sqa": utils["scienceqa"].sqa_doc_to_text(doc, letter | {"format": "default"}),
                "mmbench": f"{hint} {text} {options}\n{letter['post_prompt']}"
                if hint
                else f"{text} {options}\n{letter['post_prompt']}",
            }

        return [one(*item) for item in items]

    def lmms_mmbench(self, rows):
        """Of (answer, choices, right letter): whether each counts, and the mean as its evaluator has it."""
        evaluator = self.load("lmms_eval/tasks/mmbench/mmbench_evals.py").MMBench_Evaluator()
        table = [
            {"index": i, "question": "?", "answer": right, "prediction": text.strip(), "category": str(i), "l2-category": "x",
             **{letter: choices.get(letter) for letter in "ABCD"}}
            for i, (text, choices, right) in enumerate(rows)
        ]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            mean, by_category, _ = evaluator.eval_result(table, "static")
        return [[float(by_category[str(i)]) for i in range(len(rows))], float(mean)]


if __name__ == "__main__":
    if sys.argv[1] == "install":
        install(Path(sys.argv[2]))
    else:
        said = getattr(_Oracles(Path(sys.argv[1])), sys.argv[2])(json.load(sys.stdin))
        print("\n" + json.dumps(said))
