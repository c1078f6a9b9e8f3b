#!/bin/sh
# Train the small codec as the shipped one was, about NN hours of one core:
#   configs/codec/small.sh TRAIN.jsonl.gz MORE.jsonl.gz READ.jsonl.gz TEACHER OUT
# READ holds the cuts of TRAIN by many adult readers (LibriSpeech and VCTK), which count three times; TEACHER is a folder
# with the encoder of Whisper tiny.en, or openai/whisper-tiny.en. A run that was stopped goes on with the same command.
set -eu
train=$1 more=$2 read=$3 teacher=$4 out=$5

run() {  # NAME OPTIONS...
    name=$1
    shift
    resume=
    if [ -e "$out/$name/end_to_end/run.json" ]; then resume=--resume; fi
    focalstream train-codec --config configs/codec/small.yaml --out "$out/$name" $resume "$@"
}

# Sound alone: what the first four runs of the shipped codec came to, in one.
run sound --steps 21000 --data "$train"

# Words too: the content of the resynthesis, judged through noise by a recogniser's encoder.
run words --init-from "$out/sound/end_to_end/codec" --teacher source="$teacher" \
    --losses content=8 distilled=1 loudness=0.75 --content-noise-db 5 --augment speed=0.15 level=6 bandwidth=0.05 \
    --batch-size 5 --crop-seconds 3.2 --average 0.999 --steps 2750 --learning-rate 5e-4 --final-learning-rate 2e-4 \
    --warmup-steps 50 --data "$train" "$more" "$read" "$read"
run clear --init-from "$out/words/end_to_end/codec" --teacher source="$teacher" \
    --losses content=14 distilled=1 loudness=0.75 --content-noise-db 5 --augment speed=0.15 level=6 bandwidth=0.05 \
    --batch-size 5 --crop-seconds 3.2 --average 0.995 --steps 880 --learning-rate 3e-4 --warmup-steps 10 \
    --data "$train" "$more" "$read" "$read"

# The tokens are final now. The decoder learns to say them more naturally.
run natural --init-from "$out/clear/end_to_end/codec" --freeze encoder compressor --teacher source="$teacher" \
    --losses content=6 loudness=0.75 entropy=0 adversarial=0.2 feature_matching=0.25 --adversary spectra \
    --adversary-seconds 1.0 --adversary-learning-rate 3e-4 --content-noise-db 5 --augment speed=0.15 level=6 \
    --batch-size 5 --crop-seconds 3.2 --average 0.99 --steps 1000 --learning-rate 3e-4 --warmup-steps 20 \
    --data "$train" "$more" "$read" "$read"
