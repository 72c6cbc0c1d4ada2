"""Comparing training runs: statistics over trials, tables and figures, loss landscapes.

Importing this package needs nothing but NumPy. The functions that need more say so when they are
called: `pip install "kdtoolkit[plot]"`.
"""

from kdtoolkit.evaluation.calibration import calibration as calibration
from kdtoolkit.evaluation.calibration import plot_reliability as plot_reliability
from kdtoolkit.evaluation.calibration import reliability as reliability
from kdtoolkit.evaluation.display import generations_figure as generations_figure
from kdtoolkit.evaluation.display import plot_generations as plot_generations
from kdtoolkit.evaluation.display import print_table as print_table
from kdtoolkit.evaluation.files import read_csv as read_csv
from kdtoolkit.evaluation.files import write_csv as write_csv
from kdtoolkit.evaluation.generations import by_generation as by_generation
from kdtoolkit.evaluation.generations import compare_matrix as compare_matrix
from kdtoolkit.evaluation.generations import compare_methods as compare_methods
from kdtoolkit.evaluation.generations import cumulative as cumulative
from kdtoolkit.evaluation.generations import generation_table as generation_table
from kdtoolkit.evaluation.landscape import loss_rise as loss_rise
from kdtoolkit.evaluation.landscape import noise_curve as noise_curve
from kdtoolkit.evaluation.landscape import noise_summary as noise_summary
from kdtoolkit.evaluation.landscape_lines import direction as direction
from kdtoolkit.evaluation.landscape_lines import interpolation as interpolation
from kdtoolkit.evaluation.landscape_lines import landscape_line as landscape_line
from kdtoolkit.evaluation.landscape_lines import landscape_surface as landscape_surface
from kdtoolkit.evaluation.landscape_plots import plot_contours as plot_contours
from kdtoolkit.evaluation.landscape_plots import plot_line as plot_line
from kdtoolkit.evaluation.landscape_plots import plot_noise_curves as plot_noise_curves
from kdtoolkit.evaluation.landscape_plots import plot_surface as plot_surface
from kdtoolkit.evaluation.statistics import Comparison as Comparison
from kdtoolkit.evaluation.statistics import compare as compare
from kdtoolkit.evaluation.statistics import holm as holm
from kdtoolkit.evaluation.statistics import summary as summary
from kdtoolkit.evaluation.tradeoff import pareto_front as pareto_front
from kdtoolkit.evaluation.tradeoff import plot_tradeoff as plot_tradeoff
