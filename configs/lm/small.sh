#!/bin/sh
# Train a small language model as the shipped one was, in about two hours of one core (the model card says what differs):
#   configs/lm/small.sh TRAIN.jsonl.gz MORE.jsonl.gz TEST.jsonl.gz CODEC OUT
# A run that was stopped goes on with the same command.
set -eu
train=$1 more=$2 test=$3 codec=$4 out=$5
mkdir -p "$out"
[ -e "$out/speech.jsonl.gz" ] || python benchmarks/lm_speech.py "$out/speech.jsonl.gz" "$train" "$more" --later 0.045
focalstream tokenize "$out/speech.jsonl.gz" "$out/tokens" --codec "$codec"
focalstream tokenize "$test" "$out/test" --codec "$codec"
resume=
if [ -e "$out/lm/run.json" ]; then resume=--resume; fi
focalstream train-lm --config small --data "$out/tokens" --held-out "$out/test" --out "$out/lm" $resume
focalstream eval-lm --lm "$out/lm" --codec "$codec" --data "$out/test" --baseline-data "$out/tokens"
