"""What all tests share: the fuzzer's counts at the end of a run."""


def pytest_terminal_summary(terminalreporter):
    reports = (report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, []))
    counts = [value for report in reports for name, value in report.user_properties if name == "fuzzer"]
    if counts:
        cases, ties = (sum(column) for column in zip(*(count[:2] for count in counts), strict=True))
        first, last = min(count[2] for count in counts), max(count[3] for count in counts)
        terminalreporter.write_line(
            f"fuzzer: {cases} cases of {len(counts)} architectures, seeds {first} to {last}, {ties} rows with near ties"
        )
