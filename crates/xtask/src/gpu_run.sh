#!/usr/bin/env bash
# Tests on a GPU machine, made by `cargo xt gpu-pack`; runs from the repository's root.
# `bash .gpu/run.sh` tests; `bash .gpu/run.sh bench` measures besides; `bash .gpu/run.sh unpack` does nothing
# but unpack the programs, for scripts of your own. Full logs go to $OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
for packed in .gpu/*.gz; do
    [ -e "$packed" ] && gunzip -f "$packed" && chmod +x "${packed%.gz}"
done
[ "${1:-}" = unpack ] && exit
out=${OUT:-.gpu/out}
mkdir -p "$out"
export KRASIS_HOME=${KRASIS_HOME:-/tmp/krasis-home}
failed=()

# part NAME COMMAND...: a fault poisons the GPU for its process, so each part is a process.
part() {
    local name=$1
    shift
    echo "=== $name"
    # What skips itself here has found no GPU, which is no success on a GPU machine.
    if ! timeout 240 "$@" >"$out/$name.txt" 2>&1 || grep -q "^skipped" "$out/$name.txt"; then
        failed+=("$name")
    fi
    grep -v "^ *[0-9]*: \|^ *at \|^$\|^note: \|^stack backtrace" "$out/$name.txt" | tail -n 40
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
part ops-f32 .gpu/ops in_f32 --nocapture
part ops-bf16 .gpu/ops in_bf16 --nocapture
part repeats .gpu/ops repeated --nocapture
part delta-nets .gpu/ops delta_nets --nocapture
part prompts .gpu/ops prompts_do_not --nocapture
part copies .gpu/ops pieces --nocapture
part timeline .gpu/ops timeline --nocapture
part models-f32 .gpu/models f32_activations --nocapture
part models-bf16 .gpu/models bf16_activations --nocapture
part models-quantised .gpu/models quantised --nocapture
part several-gpus .gpu/models several_gpus --nocapture
part demo .gpu/krasis run "What is 2+2?" --device cuda --temperature 0 --model-path demo/model
part perplexity .gpu/krasis eval --text demo/heldout/text.jsonl --limit 40 --device cuda --model-path demo/model
if [ "${1:-}" = bench ]; then
    part bench-vector .gpu/vector
    part bench-delta .gpu/delta
    part bench-attention .gpu/attention
    part bench-copies .gpu/copies
    for bits in 16 4; do
        part "bench-$bits" .gpu/krasis bench --model-path fixtures/configs/Qwen3-30B-A3B.json \
            --load-format dummy --cpu-expert-bits "$bits" --device cuda
    done
fi
echo "failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
