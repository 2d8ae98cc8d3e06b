# ruff: noqa: I001 - unsloth changes what it is imported before
from unsloth import FastLanguageModel
from trl import SFTConfig, SFTTrainer

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="unsloth/Llama-3.2-1B-Instruct", max_seq_length=4096, load_in_4bit=True
)
model = FastLanguageModel.get_peft_model(
    model, r=16, lora_alpha=32, lora_dropout=0.0, use_gradient_checkpointing="unsloth"
)
args = SFTConfig(
    output_dir="out",
    per_device_train_batch_size=2,
    gradient_accumulation_steps=8,
    max_length=4096,
    learning_rate=2e-4,
    lr_scheduler_type="cosine",
    warmup_steps=30,
    optim="adamw_8bit",
    bf16=True,
    num_train_epochs=1,
)
SFTTrainer(model=model, processing_class=tokenizer, args=args).train()
