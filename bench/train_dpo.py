"""Two steps of TRL's DPOTrainer on a dataset that `rerank_preferences` made: is it what a trainer reads? Run by hand, in an environment
of its own with torch, trl and transformers (they are not needed by the package):

    python bench/train_dpo.py outputs/it/rerank_preferences

The model is a random Llama of two layers, and its tokenizer is trained on the rows: nothing is downloaded, and nothing useful is learned."""
import sys
import tempfile

from datasets import load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"

if __name__ == "__main__":
    rows = load_dataset(sys.argv[1], split="train")
    texts = [m["content"] for row in rows for part in ("prompt", "chosen", "rejected") for m in row[part]]
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1000, special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE)
    model, reference = (LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, pad_token_id=tokenizer.pad_token_id)) for _ in range(2))
    config = DPOConfig(output_dir=tempfile.mkdtemp(), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no", max_length=512)
    trainer = DPOTrainer(model=model, ref_model=reference, args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(f"{len(rows)} pairs, columns {', '.join(trainer.train_dataset.column_names)}; loss {losses}")
    assert len(losses) == 2 and all(0 < loss < 5 for loss in losses)
