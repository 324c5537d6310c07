"""What a recorded run lost and why, as a page to look at and as figures for a paper."""

from gradscale.report.figures import draw_figure as draw_figure
from gradscale.report.figures import save_figures as save_figures
from gradscale.report.write import write_report as write_report
