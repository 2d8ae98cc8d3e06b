#!/usr/bin/env bash
torchrun --nproc_per_node=8 -m torchtitan.train \
  --module llama3 --config llama3_8b \
  --training.local_batch_size 2 --training.global_batch_size 128 \
  --training.seq_len 4096 --parallelism.data_parallel_shard_degree 8 activation-checkpoint:full
