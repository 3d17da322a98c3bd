# All runs of deepcompress_real.py on the GPUs of one host, several on each; what is done is not done again:
#     make -k -f research/deepcompress_real.mk -j 12 GPUS=4 SLOTS=3 MODEL=qwen-1.5b
# MODEL: a folder is read faster than a GGUF file. What each command said lies in $(OUT)/logs. Needs flock, of util-linux.
PYTHON ?= python
MODEL ?= qwen-1.5b.gguf
PROBLEMS ?= problems
OUT := deepcompress-real
GPUS ?= 1
SLOTS ?= 2
SEEDS ?= 1 2
ARMS ?= grpo published cap ours penalty
GROUPS ?= 960
SECONDS ?= 3600
TRAINING ?=
ROWS ?= 512

HERE := $(dir $(lastword $(MAKEFILE_LIST)))
HALF := $(shell expr $(GROUPS) / 2)
FIRST := $(firstword $(SEEDS))
RUNS := $(foreach seed,$(SEEDS),$(addsuffix -$(seed),$(ARMS)))
LATE := ours-late-$(FIRST)
HALF_RUN := grpo-$(FIRST)
ASKED := $(PROBLEMS)/choose-gsm8k.jsonl,$(PROBLEMS)/gsm8k.jsonl,$(PROBLEMS)/math-500.jsonl

.PHONY: all
.SECONDARY:
all: $(RUNS:%=$(OUT)/%.trained) $(OUT)/start.budgets $(OUT)/$(LATE).trained $(RUNS:%=$(OUT)/%.asked) \
	$(OUT)/ours-$(FIRST).budgets $(OUT)/$(LATE).asked

# A job waits for a free slot: each is a lock, and slot k is one of GPU k mod GPUS.
define on_a_gpu
@mkdir -p $(OUT)/slots $(OUT)/logs
@while :; do for slot in $$(seq 0 $$(($(GPUS) * $(SLOTS) - 1))); do \
	exec 9> $(OUT)/slots/$$slot; flock -n 9 && break 2; done; sleep 1; done; \
	echo "$$(date +%T) $(@F) begins on GPU $$((slot % $(GPUS)))"; CUDA_VISIBLE_DEVICES=$$((slot % $(GPUS))) \
	$(PYTHON) $(HERE)deepcompress_real.py $(1) --seed $(lastword $(subst -, ,$(run))) --as $(run) \
	--out $(OUT)/results --work $(OUT)/work > $(OUT)/logs/$(@F).log 2>&1 && touch $@ && echo "$$(date +%T) $(@F) is done"
endef
run = $(basename $(@F))
arm = $(firstword $(subst -, ,$(run)))
train = $(call on_a_gpu,train $(1) --model $(2) --problems $(PROBLEMS)/fit-gsm8k.jsonl --groups $(3) --seconds $(SECONDS) $(TRAINING))
ask = $(call on_a_gpu,evaluate $(1) --model $(2) --problems $(ASKED) --rows $(ROWS))
fit = $(call on_a_gpu,budgets $(1) --model $(2) --problems $(PROBLEMS)/gsm8k.jsonl \
	--predictor-problems $(PROBLEMS)/fit-gsm8k.jsonl --predictor-limit 1500 --predictor-steps 3000 --rows $(ROWS))

$(OUT)/%.trained:
	$(call train,$(arm),$(MODEL),$(GROUPS))
$(OUT)/%.asked: $(OUT)/%.trained
	$(call ask,$(arm),$(MODEL))
$(OUT)/%.budgets: $(OUT)/%.asked
	$(call fit,$(arm),$(MODEL))
$(OUT)/start.asked:
	$(call ask,start,$(MODEL))

# Plain GRPO for half of the groups, then ours for the other half.
$(OUT)/$(HALF_RUN).merged: $(OUT)/$(HALF_RUN).trained
	$(call on_a_gpu,merge grpo --half --model $(MODEL))
$(OUT)/$(LATE).trained: $(OUT)/$(HALF_RUN).merged
	$(call train,ours,$(OUT)/work/$(HALF_RUN).half.merged,$(HALF))
$(OUT)/$(LATE).asked: $(OUT)/$(LATE).trained
	$(call ask,ours,$(OUT)/work/$(HALF_RUN).half.merged)
