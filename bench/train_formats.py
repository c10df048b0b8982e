"""Two steps of TRL's trainers on each of the files that `formats.write_format` makes for them: are they what a trainer reads? Run by hand,
in two environments: that of this package writes the files, one of its own with torch, trl and transformers trains on them:

    python bench/train_formats.py write FOLDER
    /path/to/trl/bin/python bench/train_formats.py train FOLDER

The model is a random Llama of two layers, and its tokenizer is trained on the rows: nothing is downloaded, and nothing useful is learned."""
import sys
import tempfile
from pathlib import Path

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
TRAINERS = {"trl_sft": "SFT", "trl_sft_completion": "SFT", "trl_sft_plain": "SFT", "handbook_sft": "SFT", "trl_preference": "DPO ORPO", "trl_preference_plain": "DPO ORPO", "handbook_preference": "DPO ORPO", "trl_kto": "KTO"}


def write(folder):
    "Files of the demo's rows, with a system message or several turns in some of those whose format allows it"
    from llmdata_nb.formats import write_format
    from llmdata_nb.rows import load_rows
    talks = [{"id": row["id"], "messages": row["messages"]} for row in load_rows("demo") if "messages" in row][:24]
    pairs = [{"id": row["id"], "prompt": row["messages"], "chosen_score": 4, "rejected_score": 2, "margin": 2,
              **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}} for row in load_rows("demo_pairs") if row.get("chosen") != row.get("rejected")]
    more = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello, what is it?"}]
    for format in TRAINERS:
        rows, messages = (talks, "messages") if "sft" in format else (pairs, "prompt")
        if "plain" in format: rows = [row for row in rows if len(row[messages]) == (1 if messages == "prompt" else 2)]
        else: rows = [row | {messages: more[:n % 4] + row[messages]} if n % 2 and row[messages][0]["role"] == "user" else row for n, row in enumerate(rows)]
        print(*write_format(rows, Path(folder)/format, format, test=0.2))


def texts(row):
    "All texts of a row"
    for value in row.values():
        if isinstance(value, str): yield value
        elif isinstance(value, list): yield from (m["content"] for m in value)


def tiny(rows):
    "A tokenizer made from the rows, and a function that gives a model for it"
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    special = ["<unk>", "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.train_from_iterator([t for row in rows for t in texts(row)], trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, pad_token_id=tokenizer.pad_token_id)
    return tokenizer, lambda: LlamaForCausalLM(config)


def train(folder):
    import trl
    from datasets import load_dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    kinds = {"SFT": (trl.SFTTrainer, trl.SFTConfig), "DPO": (trl.DPOTrainer, trl.DPOConfig), "KTO": (trl.KTOTrainer, trl.KTOConfig), "ORPO": (ORPOTrainer, ORPOConfig)}
    for format, names in TRAINERS.items():
        data = load_dataset(str(Path(folder)/format))
        rows = data[next(split for split in data if split.startswith("train"))]
        tokenizer, model = tiny(rows)
        for name in names.split():
            trainer, config = kinds[name]
            args = config(output_dir=tempfile.mkdtemp(), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no", max_length=512, disable_tqdm=True)
            run = trainer(model=model(), **({"ref_model": model()} if name in ("DPO", "KTO") else {}), args=args, train_dataset=rows, processing_class=tokenizer)
            run.train()
            losses = [line["loss"] for line in run.state.log_history if "loss" in line]
            print(f"{format}: {len(rows)} rows of {', '.join(rows.column_names)}; {name} loss {losses}", flush=True)
            assert len(losses) == 2 and all(0 < float(loss) < 12 for loss in losses)


if __name__ == "__main__": {"write": write, "train": train}[sys.argv[1]](sys.argv[2])
