#!/bin/sh
# Train a small codec as the shipped one was, in about six hours of one core (the model card says what differs):
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

taught() {  # NAME FROM OPTIONS...: by a recogniser's encoder, which hears through noise
    name=$1 from=$2
    shift 2
    run "$name" --init-from "$out/$from/end_to_end/codec" --teacher source="$teacher" --content-noise-db 5 \
        --batch-size 5 --crop-seconds 3.2 --data "$train" "$more" "$read" "$read" "$@"
}

run sound --steps 21200 --data "$train"
taught words sound --losses content=8 distilled=1 loudness=0.75 --augment speed=0.15 level=6 bandwidth=0.05 \
    --average 0.999 --steps 2750 --learning-rate 5e-4 --final-learning-rate 2e-4 --warmup-steps 50
taught clear words --losses content=14 distilled=1 loudness=0.75 --augment speed=0.15 level=6 bandwidth=0.05 \
    --average 0.995 --steps 880 --learning-rate 3e-4 --warmup-steps 10

# The tokens are final now; the decoder learns to say them.
taught decoder clear --freeze encoder compressor --losses content=6 loudness=0.75 entropy=0 adversarial=0.2 \
    feature_matching=0.25 --adversary spectra --adversary-seconds 1.0 --adversary-learning-rate 3e-4 \
    --augment speed=0.15 level=6 --average 0.99 --steps 820 --learning-rate 3e-4 --warmup-steps 20
taught last decoder --freeze encoder compressor --losses content=4 loudness=0.75 entropy=0 --average 0.98 \
    --steps 360 --learning-rate 3e-4 --warmup-steps 20
