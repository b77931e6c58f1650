import importlib.util
import json
import re
from statistics import mean

import numpy as np
import pytest
import torch

from gqa_lab import recorded
from gqa_lab.attention import grouped_attention
from gqa_lab.checks.engine import PREDICTIONS
from gqa_lab.generate import generate
from gqa_lab.listen import MISSING, PARAGRAPH, cross_entropy, head_weights, listen, load_smollm2, paragraph_loss
from gqa_lab.recorded import provenance

BENCHMARKS = recorded.RESULTS.parent


@pytest.fixture(scope="module")
def answers():
    return recorded.recorded("smollm2_answers")


def test_every_record_says_on_what_with_which_versions_and_when():
    for path in recorded.RESULTS.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert re.fullmatch(r"recorded on .+, torch \d.+, Python \d.+, \d{4}-\d\d-\d\d", provenance(record))


def test_a_record_that_is_not_there_names_those_that_are():
    with pytest.raises(FileNotFoundError, match="no record named 'nothing'.*smollm2_answers"):
        recorded.recorded("nothing")


def test_the_numbers_in_the_predictions_are_the_recorded_ones(answers):
    losses = {name: f"{a['cross_entropy']:.3g}" for name, a in answers["answers"].items()}
    reply = PREDICTIONS["05.p2"].options["b"][1]
    assert f"{losses['right']} becomes {losses['tiled']}" in reply and f"only V gives {losses['tiled values']}" in reply
    near, far = (f"{mean(answers['head_distances'][name]):.2f}" for name in ("inside", "across"))
    assert f"{near} inside a group and {far} across" in PREDICTIONS["05.p4"].options["b"][1]
    for name in ("05.p2", "05.p4"):
        assert f"{answers['n_paragraph_tokens']} tokens" in PREDICTIONS[name].options["b"][1]


def test_another_machine_says_the_same_because_no_choice_was_close(answers):
    assert all(answer["smallest_gap"] > 1e-3 for answer in answers["answers"].values())


def test_the_real_model_still_says_what_is_recorded(answers, capsys):
    model, tokenizer = load_smollm2()
    assert model is not None, MISSING
    prompt = tokenizer.chat(answers["prompt"])
    assert len(prompt) == answers["n_prompt_tokens"]
    steps = generate(model, [prompt], max_new_tokens=40, attend=grouped_attention, stop=tokenizer.stop_ids)
    right = answers["answers"]["right"]
    assert [token for [token] in steps] == right["ids"] and tokenizer.decode(right["ids"]) == right["text"]
    ids = torch.tensor([tokenizer.encode(PARAGRAPH)], device=model.device)
    assert cross_entropy(model, ids) == pytest.approx(right["cross_entropy"], abs=1e-3)


def test_the_loss_of_the_paragraph_is_measured_with_the_model_and_recorded_without(answers):
    losses = {name: answer["cross_entropy"] for name, answer in answers["answers"].items()}
    assert all(paragraph_loss(None, None, record=name) == loss for name, loss in losses.items())
    model, tokenizer = load_smollm2()
    assert paragraph_loss(model, tokenizer, record="right") == pytest.approx(losses["right"], abs=1e-3)

    def heads_reversed(q, k, v, *, lengths=None, window=None):
        return grouped_attention(q.flip(1), k, v)

    assert paragraph_loss(model, tokenizer, record="right", attend=heads_reversed) > losses["right"] + 1


def test_every_head_still_looks_where_the_record_of_lesson_02_says():
    saved = recorded.recorded("head_weights")
    model, tokenizer = load_smollm2(device="cpu")
    live = head_weights(model, tokenizer.encode(saved["sentence"]))
    rows, columns = np.tril_indices(len(saved["words"]))
    assert live.shape == (30, 9, len(saved["words"]), len(saved["words"])) and np.allclose(live.sum(-1), 1)
    assert np.abs(100 * live[:, :, rows, columns] - np.array(saved["percent"])).max() < 0.6  # kept in whole percent
    assert not live[:, :, columns[rows != columns], rows[rows != columns]].any()


def test_heads_of_a_group_still_differ_as_recorded(answers):
    spec = importlib.util.spec_from_file_location("smollm2_answers", BENCHMARKS / "smollm2_answers.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    live = benchmark.head_distances(*load_smollm2(device="cpu"))
    for name, distances in answers["head_distances"].items():
        assert live[name] == pytest.approx(distances, abs=1e-3)


def test_without_the_model_the_recorded_answer_is_shown_and_says_so(answers, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GQA_LAB_CACHE", str(tmp_path))
    model, tokenizer = load_smollm2()
    assert (model, tokenizer) == (None, None)
    assert listen(model, tokenizer, answers["prompt"], record="right") == answers["answers"]["right"]["ids"]
    said = capsys.readouterr().out
    assert "python course.py lab" in said and "recorded on CPU" in said and "The capital of France is Paris" in said


def test_a_record_is_saved_with_its_provenance_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "RESULTS", tmp_path)
    made = {"provenance": recorded.environment(), "seconds": 0.5}
    recorded.save_record("made", made)
    assert recorded.recorded("made") == made
    with pytest.raises(ValueError, match='needs "provenance"'):
        recorded.save_record("hearsay", {"seconds": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["made.json"]
