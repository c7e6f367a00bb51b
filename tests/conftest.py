"""One thread for all tests, and TRL's DPO trainer as an independent source of losses."""

from __future__ import annotations

import contextlib
import copy
import shutil
import subprocess
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor


class TrlDPO:
    """The losses of TRL's DPOTrainer, `sigmoid` by default, run by the trainer's own code.

    Both methods give the loss and what the trainer logs; a batch with one pair gives them per pair.
    """

    def __init__(self, folder):
        from datasets import Dataset
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast
        from trl import DPOConfig, DPOTrainer

        from lit_tidpo.testing import tiny_policy

        class Trainer(DPOTrainer):
            def _prepare_dataset(self, dataset, *options):
                return dataset

        words = {"<pad>": 0, "<s>": 1, "</s>": 2}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="</s>")),
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="</s>",
        )
        ids = {"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1]}
        with _on_its_own():
            self.trainer = Trainer(
                tiny_policy(),
                tiny_policy(),
                args=DPOConfig(str(folder), use_cpu=True, report_to="none", bf16=False),
                train_dataset=Dataset.from_list([ids]),
                processing_class=tokenizer,
            )

    def on_models(self, policy, reference, batch, beta):
        """Run copies of two models; also gives the policy's copy, whose gradients can be read."""
        from trl.trainer.utils import add_fused_lm_head

        policy, reference = copy.deepcopy(policy), copy.deepcopy(reference)
        add_fused_lm_head(policy, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        add_fused_lm_head(reference)
        return *self._run(policy, reference, batch, beta), policy

    def on_logits(self, policy_logits, reference_logits, batch, beta, **settings):
        """Run on given logits, [N, T, V] each, with other settings of the trainer."""
        before = {name: getattr(self.trainer, name) for name in settings}
        try:
            vars(self.trainer).update(settings)
            return self._run(_Fixed(policy_logits), _Fixed(reference_logits), batch, beta)
        finally:
            vars(self.trainer).update(before)

    def _run(self, policy, reference, batch, beta):
        trainer = self.trainer
        trainer.beta, trainer.ref_model = beta, reference
        trainer._metrics["train"].clear()
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask.long(),
            "completion_mask": batch.response_mask.long(),
        }
        with _on_its_own():
            loss = trainer.compute_loss(policy, inputs)
        return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


@contextlib.contextmanager
def _on_its_own():
    """Leave the global generator alone, and let TRL use names that transformers deprecates."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Fixed:
    """Stands for a model with TRL's output head."""

    def __init__(self, logits: Tensor):
        self.logits = logits[:, :-1]

    def __call__(self, input_ids, attention_mask, labels, **options):
        from trl.trainer.utils import selective_log_softmax

        labels = labels[:, 1:]
        logps = selective_log_softmax(self.logits, labels.clamp(min=0))
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=logps.masked_fill(labels == -100, 0.0),
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            log_sum_sq_probs=self.logits.softmax(-1).square().sum(-1).log(),
        )


def pytest_collection_modifyitems(items):
    """Mark what takes a browser, for ``make browser``."""
    for item in items:
        if "browse" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """Tiny tensors gain nothing from threads, and one thread adds in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trl_dpo(tmp_path_factory):
    return TrlDPO(tmp_path_factory.mktemp("trl"))


@pytest.fixture
def browse(tmp_path):
    """What a browser makes of a page, as HTML."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on this machine")

    def run(text, *options):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        quiet = ["--disable-gpu", "--disable-background-networking", "--disable-sync"]
        command = [browser, "--headless", "--no-sandbox", "--no-first-run", *quiet, *options]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
        command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, check=True, timeout=600)
        return done.stdout.decode()

    return run
