"""Does the work of one benchmark with pyreft or transformers. The last line that it prints is a JSON object.

    python peer.py SPEC.json        # what to do, as xtask/src/bench/work.rs writes it
    python peer.py --check          # the versions of the modules

Made for torch 2.6.0, transformers 4.45.1, numpy<2, and, without their dependencies, pyvene 0.1.8 and pyreft 0.1.0.
"""

import csv
import json
import os
import sys
import time

import pyreft
import pyvene
import torch
import transformers

PREAMBLE = "Below is an instruction that describes a task"
TEMPLATES = {
    "alpaca": (
        PREAMBLE + ". Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{instruction}\n\n### Response:\n",
        PREAMBLE + ", paired with an input that provides further context. Write a response that appropriately completes "
        "the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    "{{ instruction }}\n": ("{instruction}\n", "{instruction}\n"),
}
IGNORED = -100


def prompt_of(row, template):
    without_input, with_input = TEMPLATES[template]
    text = with_input if row.get("input") else without_input
    return text.format(**row)


def reft_model(model, components, rank, width):
    """A pyreft model with an edit at each of these places that is the identity before training, as with `init = "identity"`."""

    def representation(component):
        edit = pyreft.LoreftIntervention(
            embed_dim=width, low_rank_dimension=rank, dropout=0.0, dtype=torch.float32, act_fn=None, device="cpu", add_bias=False
        )
        return {**component, "low_rank_dimension": rank, "intervention": edit}

    config = pyreft.ReftConfig(representations=[representation(component) for component in components])
    reft = pyreft.get_reft_model(model, config)
    reft.set_device("cpu")
    for edit in reft.interventions.values():
        with torch.no_grad():
            edit.learned_source.weight.copy_(edit.rotate_layer.weight.T)
            edit.learned_source.bias.zero_()
    return reft


def locations(prompt_lens, positions, n_edits, pad_mode):
    """For each edit and row, the edited positions."""

    def of_row(n):
        return pyreft.get_intervention_locations(
            last_position=n, positions=positions, num_interventions=n_edits, share_weights=True, pad_mode=pad_mode
        )

    by_row = [of_row(n) for n in prompt_lens]
    return [[row[edit] for row in by_row] for edit in range(n_edits)]


def update(params, optimizer, loss):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def train(params, spec, examples, step_loss):
    """Batches in the order of the file, again and again. Measures every update, from the padding of its rows on."""
    optimizer = torch.optim.AdamW(params, lr=spec["lr"], weight_decay=0.0)
    batch_size, per_epoch = spec["batch_size"], spec["steps_per_epoch"]
    seconds, losses, tokens = [], [], 0
    for step in range(per_epoch * spec["epochs"]):
        start = step % per_epoch * batch_size
        batch = examples[start : start + batch_size]
        assert len(batch) == batch_size, "too few rows"
        begun = time.perf_counter()
        loss = step_loss(batch)
        update(params, optimizer, loss)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begun)
        tokens += sum(len(example[0]) for example in batch)
    return {"step_seconds": seconds, "losses": losses, "tokens": tokens}


def instruct(spec):
    """Instruction following with LoReFT."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], torch_dtype=torch.float32).eval()
    model.requires_grad_(False)
    config = model.config
    layers = range(config.num_hidden_layers) if spec["layers"] == "all" else [int(n) for n in spec["layers"].split(",")]
    components = [{"layer": layer, "component": "block_output"} for layer in layers]
    reft = reft_model(model, components, spec["rank"], config.hidden_size)

    def ids(text):
        return tokenizer(text, truncation=True, max_length=spec["max_length"])["input_ids"]

    def encode(row):
        prompt = prompt_of(row, spec["template"])
        return ids(prompt + row["output"] + tokenizer.eos_token), len(ids(prompt))

    examples = [encode(row) for row in json.load(open(spec["data"]))]
    examples = [(tokens, n_prompt) for tokens, n_prompt in examples if len(tokens) > n_prompt]

    def step_loss(batch):
        longest = max(len(tokens) for tokens, _ in batch)

        # The masked token in front is where pyreft sends positions that a short prompt does not have.
        def padded(before, values, after):
            return torch.tensor([[before] + row + [after] * (longest - len(row)) for row in values])

        tokens = padded(0, [tokens for tokens, _ in batch], 0)
        mask = padded(0, [[1] * len(tokens) for tokens, _ in batch], 0)
        labels = padded(IGNORED, [[IGNORED] * n + tokens[n:] for tokens, n in batch], IGNORED)
        where = locations([n for _, n in batch], spec["positions"], len(components), "first")
        where = [[[position + 1 for position in row] for row in edit] for edit in where]
        base = {"input_ids": tokens, "attention_mask": mask}
        _, output = reft(base=base, unit_locations={"sources->base": (None, where)}, labels=labels)
        return output.loss

    params = [p for edit in reft.interventions.values() for p in edit.parameters() if p.requires_grad]
    return train(params, spec, examples, step_loss)


def sst2(spec):
    """Sentiment of sentences with LoReFT and a head."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(spec["model"], "tokenizer.json"))
    tokenizer._tokenizer.no_padding()
    tokenizer._tokenizer.no_truncation()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        spec["model"], attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, num_labels=2, torch_dtype=torch.float32
    )
    layers = range(model.config.num_hidden_layers)
    components = [{"component": f"roberta.encoder.layer[{layer}].output"} for layer in layers]
    reft = reft_model(model, components, spec["rank"], model.config.hidden_size)
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith("classifier"))
    params = [p for edit in reft.interventions.values() for p in edit.parameters() if p.requires_grad]
    params += model.classifier.parameters()

    with open(spec["data"]) as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = rows[: spec["batch_size"] * spec["steps_per_epoch"]]

    def encode(row):
        return tokenizer(row["sentence"].strip())["input_ids"][: spec["max_length"]], int(row["label"])

    examples = [encode(row) for row in rows]
    pad = model.config.pad_token_id

    def step_loss(batch):
        # The masked token behind is where pyreft sends positions that a short text does not have.
        length = max(len(tokens) for tokens, _ in batch) + 1
        tokens = torch.tensor([tokens + [pad] * (length - len(tokens)) for tokens, _ in batch])
        mask = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens, _ in batch])
        where = locations([len(tokens) for tokens, _ in batch], spec["positions"], len(components), "last")
        base = {"input_ids": tokens, "attention_mask": mask}
        _, output = reft(base=base, unit_locations={"sources->base": (None, where)})
        return torch.nn.functional.cross_entropy(output.logits, torch.tensor([label for _, label in batch]))

    model.train()
    return train(params, spec, examples, step_loss)


def generate(spec):
    """Greedy decoding with transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
    dtype = getattr(torch, spec["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], torch_dtype=dtype).eval()
    prompts = [tokenizer(prompt_of(row, spec["template"]))["input_ids"] for row in json.load(open(spec["data"]))]
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ticks = []

    def after_token(ids, scores, **_):
        ticks.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)

    with torch.inference_mode():
        begun = time.perf_counter()
        out = model.generate(
            tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=spec["new_tokens"],
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([after_token]),
        )
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]

    def until_stop(row):
        ends = [at for at, token in enumerate(row) if token in stops]
        return row[: ends[0] + 1] if ends else row

    rows = [until_stop(row) for row in out[:, longest:].tolist()]
    seconds = [after - before for before, after in zip([begun] + ticks, ticks)]
    return {"prompt_seconds": seconds[0], "step_seconds": seconds[1:], "rows": rows}


def main():
    modules = {"torch": torch, "transformers": transformers, "pyvene": pyvene, "pyreft": pyreft}
    versions = {name: getattr(module, "__version__", None) for name, module in modules.items()}
    if sys.argv[1] == "--check":
        # Two of them do not say their version.
        from importlib.metadata import version

        print(json.dumps({name: known or version(name) for name, known in versions.items()}))
        return
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    work = {"instruct": instruct, "sst2": sst2, "generate": generate}[spec["work"]]
    print(json.dumps(work(spec)))


main()
