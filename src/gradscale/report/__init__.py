"""What a recorded run lost and why, as a page to look at and as figures for a paper."""

try:
    from gradscale.report.figures import draw_figure as draw_figure
    from gradscale.report.figures import save_figures as save_figures
    from gradscale.report.write import write_report as write_report
except ModuleNotFoundError as error:
    if (error.name or "").startswith("gradscale"):
        raise
    raise ImportError(
        f"`gradscale.report` needs {error.name}, which is not installed. Install it with "
        '`pip install "gradscale[report]"`.'
    ) from error
