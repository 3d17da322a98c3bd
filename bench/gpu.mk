# What docs/measurements.md says of the speed of one GPU and of keys and values in FP8, and the tests that need a GPU, one
# after another; what is done is not done again:
#     make -k -f bench/gpu.mk GPU=h200 MODEL=qwen.gguf PROBLEMS=problems
# GPU: names the file of speeds. PROBLEMS: what bench/real_problems.py wrote. vLLM is measured where it is installed. What
# each run said lies beside it.
PYTHON := python
GPU := h200
MODEL := qwen.gguf
PROBLEMS := problems
OUT := gpu
RESULTS := bench/results

LEANTHINK := $(PYTHON) -m leanthink
CELLS := --cells 20x4000,20x8000,64x3000,256x640,512x512
ANSWERS := --recent-window 16 --eviction-interval 16 --max-answer-slots 64 --max-new-tokens 2048
FIT := --limit 1500 --max-num-seqs 512 --max-new-tokens 2048 --horizons 16,32,64,128,256 --steps 3000
TOLD := '`leanthink predictor --problems fit-gsm8k.jsonl $(FIT)`'
RUNS := 8b horizon-8b 1.5b horizon-1.5b fp8-8b

.PHONY: all tests speed seconds fp8
all: tests speed seconds fp8

tests: $(RESULTS)/gpu_tests.json
speed: $(RUNS:%=$(OUT)/%/bench.json)
	$(PYTHON) bench/speed_results.py $(^D) --out $(RESULTS)/speed-$(GPU).json
seconds: $(OUT)/seconds/result.json
	$(PYTHON) bench/real_kv.py --out $(RESULTS)/real --predictor $(TOLD) seconds $(<D)
fp8: $(OUT)/auto/result.json $(OUT)/fp8/result.json
	$(PYTHON) bench/real_kv.py --out $(RESULTS)/real --predictor $(TOLD) fp8 $(^D)

$(RESULTS)/gpu_tests.json: $(OUT)/tests.xml
	$(PYTHON) bench/junit_results.py $< --out $@
$(OUT)/tests.xml:
	@mkdir -p $(@D)
	$(PYTHON) -m pytest -q -m gpu -W ignore --junitxml $@.part $$(grep -l mark.gpu tests/test_*.py); mv $@.part $@

$(OUT)/8b/bench.json: BENCH = --shape llama-3.1-8b --parts roofline,prompts,decode,throughput,vllm-baseline $(CELLS)
$(OUT)/1.5b/bench.json: BENCH = --shape qwen2.5-1.5b --parts roofline,prompts,decode,vllm-baseline $(CELLS)
$(OUT)/fp8-8b/bench.json: BENCH = --shape llama-3.1-8b --parts throughput,vllm-baseline --kv-cache-dtype fp8
$(OUT)/horizon-8b/bench.json: BENCH = --shape llama-3.1-8b --parts eviction --prompt 64 $(CELLS)
$(OUT)/horizon-1.5b/bench.json: BENCH = --shape qwen2.5-1.5b --parts eviction --prompt 64 $(CELLS)
$(RUNS:%=$(OUT)/%/bench.json):
	@mkdir -p $(OUT)
	$(LEANTHINK) bench $(BENCH) --out $(@D).part --overwrite > $(@D).log 2>&1 && mv $(@D).part $(@D)

$(OUT)/horizon.safetensors:
	@mkdir -p $(@D)
	$(LEANTHINK) predictor --model $(MODEL) --problems $(PROBLEMS)/fit-gsm8k.jsonl $(FIT) --out $@ > $@.log 2>&1

$(OUT)/warm.jsonl: $(PROBLEMS)/choose-gsm8k.jsonl
	@mkdir -p $(@D)
	head -n 48 $< > $@
$(OUT)/seconds/result.json: $(OUT)/horizon.safetensors $(OUT)/warm.jsonl
	$(LEANTHINK) eval --model $(MODEL) --problems $(OUT)/warm.jsonl --problems $(PROBLEMS)/gsm8k.jsonl --limit 300 \
		--policies horizon,r-kv,snapkv,vase,random-heads --predictor horizon=$< --budgets 62 $(ANSWERS) \
		--max-num-seqs 300 --out $(@D) > $(@D).log 2>&1
$(OUT)/auto/result.json $(OUT)/fp8/result.json: $(OUT)/horizon.safetensors
	$(LEANTHINK) eval --model $(MODEL) --problems $(PROBLEMS)/gsm8k.jsonl --limit 600 --policies full,horizon \
		--predictor horizon=$< --budgets 140,62 $(ANSWERS) --together --max-num-seqs 512 \
		--kv-cache-dtype $(notdir $(@D)) --out $(@D) > $(@D).log 2>&1
