SSB_COORDINATOR=localhost:12345 SSB_PROCESSES=2 SSB_PROCESS=0 JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 python -m ssb_jax run configs/qwen2.5-3b-gsm8k.yaml --out '/runs/it'"'"'s' &
SSB_COORDINATOR=localhost:12345 SSB_PROCESSES=2 SSB_PROCESS=1 JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 python -m ssb_jax run configs/qwen2.5-3b-gsm8k.yaml --out '/runs/it'"'"'s' &
wait
