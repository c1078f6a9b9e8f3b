#!/bin/sh
# Train a small codec as the shipped one was (the model card says what differs):
#   [DEVICE=cuda] configs/codec/small.sh TRAIN.jsonl.gz MORE.jsonl.gz READ.jsonl.gz TEACHER OUT
# READ holds the cuts of TRAIN by many adult readers (LibriSpeech and VCTK), which count three times; TEACHER is a folder
# with the encoder of Whisper tiny.en, or openai/whisper-tiny.en. On one core the first run takes four hours, and the
# others, together twelve minutes of an H100, two days and a half. A run that was stopped goes on with the same command.
# At its end the codec is made as loud as its originals in every band; it is then the folder OUT/small.
set -eu
train=$1 more=$2 read=$3 teacher=$4 out=$5 device=${DEVICE:-cpu}
workers=4
if [ "$device" = cpu ]; then workers=0; fi

run() {  # NAME OPTIONS...
    name=$1
    shift
    resume=
    if [ -e "$out/$name/end_to_end/run.json" ]; then resume=--resume; fi
    focalstream train-codec --config configs/codec/small.yaml --out "$out/$name" --device "$device" $resume "$@"
}

# Without pitch and voicing, which the last run adds.
plain="--model decoder_config.head=istft --losses pitch=0 voicing=0 periodicity=0"

taught() {  # NAME FROM OPTIONS...: by a recogniser's encoder, which hears through noise
    name=$1 from=$2
    shift 2
    run "$name" --init-from "$out/$from/end_to_end/codec" --teacher source="$teacher" --content-noise-db 5 \
        --losses content=8 distilled=1 loudness=0.75 --batch-size 64 --crop-seconds 3.2 \
        --learning-rate 1e-3 --final-learning-rate 5e-6 --warmup-steps 100 --average 0.998 --workers $workers \
        --data "$train" "$more" "$read" "$read" "$@"
}

# `words` stands for two runs, of 1,530 and 2,015 steps.
run sound --steps 21200 --data "$train" $plain
taught words sound --steps 3545 --augment speed=0.15 level=6 bandwidth=0.05 $plain
taught clear words --steps 6160 --augment speed=0.15 level=12 bandwidth=0.05 --seed 21 $plain
taught voiced clear --steps 5820 --augment speed=0.15 level=12 bandwidth=0.05 --seed 22
python benchmarks/equalise.py "$out/voiced/end_to_end/codec" "$train" "$out/small"
