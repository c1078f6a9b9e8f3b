"""What is said while a run is going."""

import pytest


@pytest.mark.parametrize("retry", [False, True])
def test_the_closing_rate_counts_only_what_this_run_encoded(write_manifest, speech, run, tmp_path, monkeypatch, retry):
    """A retry in a shard whose other cuts are sound, and a run of which nothing is left to encode."""
    from pipelines.bulk import progress

    manifest, seconds = write_manifest({f"cut-{i}": speech(i, 0.5 + i / 10) for i in range(4)}), []
    (tmp_path / "audio/2.wav").rename(tmp_path / "2.wav")
    if retry:
        run(manifest, tmp_path / "out")
        (tmp_path / "2.wav").rename(tmp_path / "audio/2.wav")
    else:
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.bulk.run.finalize", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(manifest, tmp_path / "out")
    leave = progress.ProgressBar.__exit__

    def see_and_leave(bar, *error):
        seconds.append((bar._seconds, bar._done + bar._seconds))
        leave(bar, *error)

    monkeypatch.setattr(progress.ProgressBar, "__exit__", see_and_leave)
    run(manifest, tmp_path / "out", retry_quarantined=retry)
    ((this_run, in_all),) = seconds
    assert this_run == pytest.approx(0.7 if retry else 0.0) and in_all == pytest.approx(2.6)


def test_the_line_a_minute_never_has_less_than_nothing_left(capsys, monkeypatch):
    """Durations summed in another order end a little above their sum."""
    from pipelines.bulk import progress
    from pipelines.bulk.tasks import Progress, Ready

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.ProgressBar(360.0, 0.0, 0) as bar:
        bar.see(Ready())
        assert capsys.readouterr().err == "0.00 of 0.10 h, 0 failed, waiting for the first audio\n"
        bar.see(Progress(360.1))
    assert capsys.readouterr().err.rstrip().endswith("0 failed, about 0 min left")


def interrupted(*arguments):
    raise KeyboardInterrupt
