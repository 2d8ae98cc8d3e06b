"""Training loops as people write them, all of them right.

A comment names what its line does, for the faults that the tests put in: ``#divide``,
``#inline K`` (divides by K within the line), ``#backward LOSS``, ``#forward``, ``#step``,
``#zero``, ``#schedule``, ``#clip``, ``#unscale``, ``#managed K`` (a library divides by K).
"""

SETUP = """\
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader
"""

LOOPS = {
    "plain": """
for x, y in loader:
    loss = F.mse_loss(model(x), y)  #forward
    loss.backward()  #backward loss
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  #clip
    optimizer.step()  #step
    scheduler.step()  #schedule
    optimizer.zero_grad()  #zero
""",
    "zero first": """
for epoch in range(1):
    for x, y in loader:
        optimizer.zero_grad()  #zero
        loss = F.mse_loss(model(x), y)  #forward
        loss.backward()  #backward loss
        optimizer.step()  #step
        print(loss.item())
""",
    "enumerate": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  #clip
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "in place": """
criterion = nn.MSELoss()
accum_steps = 4
for i, (x, y) in enumerate(loader, start=1):
    loss = criterion(model(x), y)  #forward
    loss /= accum_steps  #divide
    loss.backward()  #backward loss
    if i % accum_steps == 0:
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad(set_to_none=True)  #zero
""",
    "inline": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y)  #forward
    (loss / accum_steps).backward()  #backward loss #inline accum_steps
    if (i + 1) % accum_steps == 0:
        optimizer.step()  #step
        optimizer.zero_grad()  #zero
""",
    "last remainder": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    if i % accum_steps == accum_steps - 1:
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "or last": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    if (i + 1) % accum_steps == 0 or (i + 1) == len(loader):
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "flag": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    is_accumulating = (i + 1) % accum_steps != 0
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    if not is_accumulating:
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "continue": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    if (i + 1) % accum_steps:
        continue
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  #clip
    optimizer.step()  #step
    scheduler.step()  #schedule
    optimizer.zero_grad()  #zero
""",
    "counter": """
accum_steps = 4
seen = 0
for x, y in loader:
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    seen += 1
    if seen == accum_steps:
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
        seen = 0
""",
    "while": """
accum_steps = 4
batches = iter(loader)
micro_step = 0
while micro_step < 8:
    x, y = next(batches)
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss * (1 / accum_steps)  #divide
    loss.backward()  #backward loss
    micro_step += 1
    if micro_step % accum_steps == 0:
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "inner loop": """
gradient_accumulation_steps = 4
batches = iter(loader)
for step in range(2):
    for micro_step in range(gradient_accumulation_steps):
        x, y = next(batches)
        loss = F.mse_loss(model(x), y)  #forward
        loss = loss / gradient_accumulation_steps  #divide
        loss.backward()  #backward loss
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  #clip
    optimizer.step()  #step
    scheduler.step()  #schedule
    optimizer.zero_grad(set_to_none=True)  #zero
""",
    "zero at the start of a window": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    if i % accum_steps == 0:
        optimizer.zero_grad()  #zero
    loss = F.mse_loss(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        optimizer.step()  #step
""",
    "gradients divided": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y)  #forward
    loss.backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        for p in model.parameters():
            p.grad /= accum_steps
        optimizer.step()  #step
        optimizer.zero_grad()  #zero
""",
    "grad = None": """
accum_steps = 4
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y)  #forward
    loss.div(accum_steps).backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        optimizer.step()
        for p in model.parameters():
            p.grad = None
""",
    "sum over tokens": """
accum_steps = 4
total = 8
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y, reduction="sum") / total  #forward
    loss.backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        optimizer.step()  #step
        optimizer.zero_grad()  #zero
""",
    "function": """
def train_one_epoch(model, loader, optimizer, scheduler, accum_steps=4):
    model.train()
    running = 0.0
    for i, (x, y) in enumerate(loader):
        loss = F.mse_loss(model(x), y)  #forward
        loss = loss / accum_steps  #divide
        loss.backward()  #backward loss
        running += loss.item() * accum_steps
        if (i + 1) % accum_steps == 0:
            optimizer.step()  #step
            scheduler.step()  #schedule
            optimizer.zero_grad()  #zero
    return running / len(loader)

train_one_epoch(model, loader, optimizer, scheduler)
""",
    "helper": """
def compute_loss(net, batch):
    x, y = batch
    return F.mse_loss(net(x), y)

def apply(opt):
    opt.step()  #step
    opt.zero_grad()

accum_steps = 4
for i, batch in enumerate(loader):
    loss = compute_loss(model, batch)  #forward
    loss = loss / accum_steps  #divide
    loss.backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        apply(optimizer)
        scheduler.step()  #schedule
""",
    "train_step": """
def train_step(net, x, y, scale):
    loss = F.mse_loss(net(x), y)
    (loss / scale).backward()  #backward loss #inline scale
    return loss.item()

accum_steps = 4
for i, (x, y) in enumerate(loader):
    train_step(model, x, y, accum_steps)  #forward
    if (i + 1) % accum_steps == 0:
        optimizer.step()  #step
        optimizer.zero_grad()  #zero
""",
    "class": """
class Trainer:
    def __init__(self, model, optimizer, scheduler):
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.accum_steps = 4
        self.max_norm = 1.0

    def loss_of(self, x, y):
        return F.mse_loss(self.model(x), y)

    def fit(self, loader):
        losses = []
        for i, (x, y) in enumerate(loader):
            loss = self.loss_of(x, y)  #forward
            loss = loss / self.accum_steps  #divide
            loss.backward()  #backward loss
            losses.append(loss.detach())
            if (i + 1) % self.accum_steps == 0:
                if self.max_norm is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
                self.optimizer.step()  #step
                self.scheduler.step()  #schedule
                self.optimizer.zero_grad()  #zero

Trainer(model, optimizer, scheduler).fit(loader)
""",
    "amp": """
scaler = torch.amp.GradScaler()
for i, (x, y) in enumerate(loader):
    with torch.autocast("cuda", dtype=torch.float16):
        loss = F.cross_entropy(model(x), y) / accum_steps  #inline accum_steps
    scaler.scale(loss).backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        scaler.unscale_(optimizer)  #unscale
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  #clip
        scaler.step(optimizer)  #step
        scaler.update()
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "amp branches": """
scaler = torch.cuda.amp.GradScaler() if args.fp16 else None
for i, batch in enumerate(loader):
    loss = model(**batch).loss  #forward
    loss = loss / args.accum_steps  #divide
    if scaler is not None:
        scaler.scale(loss).backward()  #backward loss
    else:
        loss.backward()
    if (i + 1) % args.accum_steps == 0:
        if scaler is not None:
            scaler.unscale_(optimizer)  #unscale
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  #clip
        if scaler is not None:
            scaler.step(optimizer)  #step
            scaler.update()
        else:
            optimizer.step()
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "apex": """
for i, (x, y) in enumerate(loader):
    loss = F.cross_entropy(model(x), y)  #forward
    loss = loss / accum_steps  #divide
    with amp.scale_loss(loss, optimizer) as scaled_loss:
        scaled_loss.backward()  #backward scaled_loss
    if (i + 1) % accum_steps == 0:
        optimizer.step()  #step
        optimizer.zero_grad()  #zero
""",
    "bf16": """
for x, y in loader:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    loss.backward()  #backward loss
    optimizer.step()  #step
    optimizer.zero_grad()  #zero
""",
    "accelerate": """
from accelerate import Accelerator
accelerator = Accelerator(gradient_accumulation_steps=4)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss  #forward
        accelerator.backward(loss)  #backward loss #managed accelerator.gradient_accumulation_steps
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)  #clip
        optimizer.step()  #step
        scheduler.step()
        optimizer.zero_grad()  #zero
""",
    "accelerate tokens": """
from accelerate import Accelerator
accelerator = Accelerator(gradient_accumulation_steps=args.accum_steps)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss.sum()
        loss = loss * args.accum_steps * accelerator.num_processes / num_items_in_batch
        accelerator.backward(loss)  #backward loss
        optimizer.step()  #step
        optimizer.zero_grad()  #zero
""",
    "accelerate by hand": """
from accelerate import Accelerator
accelerator = Accelerator(mixed_precision="bf16")
for i, batch in enumerate(loader):
    loss = F.cross_entropy(model(batch.x), batch.y)  #forward
    accelerator.backward(loss / accum_steps)  #backward loss #inline accum_steps
    if (i + 1) % accum_steps == 0:
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "ddp no_sync": """
from contextlib import nullcontext
from torch.nn.parallel import DistributedDataParallel as DDP
model = DDP(model)
for i, (x, y) in enumerate(loader):
    sync = (i + 1) % accum_steps == 0
    with nullcontext() if sync else model.no_sync():
        loss = F.cross_entropy(model(x), y)  #forward
        loss = loss / accum_steps  #divide
        loss.backward()  #backward loss
    if sync:
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "nanogpt": """
scaler = torch.cuda.amp.GradScaler(enabled=(dtype == "float16"))
X, Y = get_batch("train")
while True:
    for micro_step in range(gradient_accumulation_steps):
        if ddp:
            model.require_backward_grad_sync = micro_step == gradient_accumulation_steps - 1
        with ctx:
            logits, loss = model(X, Y)  #forward
            loss = loss / gradient_accumulation_steps  #divide
        X, Y = get_batch("train")
        scaler.scale(loss).backward()  #backward loss
    if grad_clip != 0.0:
        scaler.unscale_(optimizer)  #unscale
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)  #clip
    scaler.step(optimizer)  #step
    scaler.update()
    optimizer.zero_grad(set_to_none=True)  #zero
    if iter_num > max_iters:
        break
""",
    "fabric": """
from lightning.fabric import Fabric
fabric = Fabric(devices=2)
model, optimizer = fabric.setup(model, optimizer)
for i, batch in enumerate(loader):
    is_accumulating = (i + 1) % accum_steps != 0
    with fabric.no_backward_sync(model, enabled=is_accumulating):
        loss = F.cross_entropy(model(batch.x), batch.y)  #forward
        fabric.backward(loss / accum_steps)  #backward loss #inline accum_steps
    if not is_accumulating:
        fabric.clip_gradients(model, optimizer, max_norm=1.0)  #clip
        optimizer.step()  #step
        scheduler.step()  #schedule
        optimizer.zero_grad()  #zero
""",
    "deepspeed": """
import deepspeed
config = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 8}
model_engine, _, _, _ = deepspeed.initialize(model=model, config=config)
for batch in loader:
    loss = model_engine(batch)  #forward
    model_engine.backward(loss)  #backward loss #managed gradient_accumulation_steps
    model_engine.step()
""",
    "tqdm, try and two losses": """
for epoch in range(epochs):
    bar = tqdm(enumerate(loader), total=len(loader))
    for i, batch in tqdm(enumerate(loader)):
        try:
            out = model(batch.x)  #forward
            loss = F.cross_entropy(out, batch.y) + 0.1 * F.mse_loss(out, batch.z)
            loss = loss / accum_steps  #divide
            loss.backward()  #backward loss
        except torch.cuda.OutOfMemoryError:
            optimizer.zero_grad()
            continue
        if (i + 1) % accum_steps == 0:
            optimizer.step()  #step
            scheduler.step()  #schedule
            optimizer.zero_grad()  #zero
""",
    "step after the loop": """
for epoch in range(epochs):
    for i, (x, y) in enumerate(loader):
        loss = F.cross_entropy(model(x), y)  #forward
        loss = loss / accum_steps  #divide
        loss.backward()  #backward loss
        if (i + 1) % accum_steps == 0:
            optimizer.step()  #step
            optimizer.zero_grad()  #zero
    optimizer.step()
    optimizer.zero_grad()
""",
    "gan": """
for real in loader:
    optimizer_d.zero_grad()
    d_loss = critic(real).mean() - critic(generator(noise).detach()).mean()
    d_loss.backward(retain_graph=True)
    optimizer_d.step()
    optimizer_g.zero_grad()
    g_loss = -critic(generator(noise)).mean()
    g_loss.backward()
    optimizer_g.step()
""",
    "lbfgs": """
for x, y in loader:
    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
""",
    "several tasks": """
for batch in loader:
    optimizer.zero_grad()
    for task in range(num_tasks):
        loss = F.cross_entropy(model(batch, task), batch.y[task])
        loss.backward()
    optimizer.step()
""",
    "update every few steps of an environment": """
for step in range(total_steps):
    obs, reward, done, info = env.step(policy(obs))
    if step % train_every == 0:
        loss = F.smooth_l1_loss(q(obs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
""",
    "skip what is not finite": """
for batch in loader:
    optimizer.zero_grad()  #zero
    loss = F.cross_entropy(model(batch.x), batch.y)
    if not torch.isfinite(loss):
        continue
    loss.backward()  #backward loss
    optimizer.step()  #step
""",
    "evaluation keeps losses": """
for x, y in loader:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for x, y in held_out:
            loss = F.cross_entropy(model(x), y)
            total += loss
""",
    "gradients divided elsewhere": """
from recipes import training
for i, batch in enumerate(loader):
    loss = F.cross_entropy(model(batch.x), batch.y)
    loss.backward()  #backward loss
    if (i + 1) % accum_steps == 0:
        training.scale_grads(model, 1 / num_tokens)
        optimizer.step()  #step
        optimizer.zero_grad()  #zero
""",
    "validation in a helper": """
@torch.no_grad()
def validate(model, held_out):
    losses = []
    for batch in held_out:
        loss = F.cross_entropy(model(batch.x), batch.y)
        losses.append(loss)
    return torch.stack(losses).mean()

for batch in loader:
    loss = F.cross_entropy(model(batch.x), batch.y)
    loss.backward()  #backward loss
    optimizer.step()  #step
    optimizer.zero_grad()  #zero
    validate(model, held_out)
""",
    "conditional division": """
for step, batch in enumerate(train_dataloader):
    loss = model(**batch)[0]
    if args.n_gpu > 1:
        loss = loss.mean()
    if args.gradient_accumulation_steps > 1:
        loss = loss / args.gradient_accumulation_steps  #divide
    loss.backward()  #backward loss
    tr_loss += loss.item()
    if (step + 1) % args.gradient_accumulation_steps == 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)  #clip
        optimizer.step()  #step
        scheduler.step()  #schedule
        model.zero_grad()  #zero
        if args.logging_steps > 0 and global_step % args.logging_steps == 0:
            print(tr_loss / global_step)
""",
    "diffusion": """
from accelerate import Accelerator
accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
for step, batch in enumerate(loader):
    with accelerator.accumulate(unet):
        noisy = noise_scheduler.add_noise(batch.latents, noise, timesteps)
        loss = F.mse_loss(unet(noisy, timesteps).sample, noise, reduction="none")
        loss = (loss.mean(dim=[1, 2, 3]) * snr_weights).mean()  #forward
        avg_loss = accelerator.gather(loss.repeat(args.train_batch_size)).mean()
        train_loss += avg_loss.item() / args.gradient_accumulation_steps
        accelerator.backward(loss)  #backward loss #managed args.gradient_accumulation_steps
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)  #clip
        optimizer.step()  #step
        lr_scheduler.step()
        optimizer.zero_grad()  #zero
""",
    "truncated in time": """
for step, batch in enumerate(loader):
    total_loss = 0
    for t in range(horizon):
        total_loss += F.mse_loss(model(batch[t]), batch[t + 1])
    optimizer.zero_grad()  #zero
    total_loss.backward()  #backward total_loss
    optimizer.step()  #step
""",
    "minibatches of a rollout": """
for epoch in range(update_epochs):
    for start in range(0, batch_size, minibatch_size):
        mb = indices[start : start + minibatch_size]
        pg_loss = torch.max(pg_loss1[mb], pg_loss2[mb]).mean()
        loss = pg_loss - ent_coef * entropy.mean() + v_loss * vf_coef
        optimizer.zero_grad()  #zero
        loss.backward()  #backward loss
        nn.utils.clip_grad_norm_(agent.parameters(), max_grad_norm)  #clip
        optimizer.step()  #step
    if target_kl is not None and approx_kl > target_kl:
        break
""",
}
