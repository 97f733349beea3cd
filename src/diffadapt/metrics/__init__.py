"""Metrics of learning and forgetting: pure functions of features, and the encoders that compute features."""

from .alignment import text_alignment
from .attributes import attribute_accuracy
from .bootstrap import (
    Interval,
    interval_of_difference,
    interval_of_mean,
    interval_of_nested_ratio,
    interval_of_ratio,
)
from .diversity import diversity
from .drift import drift_features, drift_pixels
from .energy import GeometryChange, geometry_change, hyperspherical_energy
from .features import Features, ProbeFeatures, load_features
from .fidelity import subject_fidelity
from .forgetting import MMD_AS, Kept, a_mmd, drift_mmd, f_mmd, kept
from .frechet import fid, frechet_distance, gaussian_of
from .harmonic import harmonic_mean
from .hypervolume import hypervolume
from .kernel_distance import kid, mmd_squared
from .preference import Preference, load_preference
from .probe import Probe, load_probe
from .student import interval_of_nested_mean
from .style import content_kept, gram, style_distance
from .weight_drift import WeightDrift, neuron_angles, weight_drift, weight_drift_by_layer

__all__ = [
    "MMD_AS",
    "Features",
    "GeometryChange",
    "Interval",
    "Kept",
    "Preference",
    "Probe",
    "ProbeFeatures",
    "WeightDrift",
    "a_mmd",
    "attribute_accuracy",
    "content_kept",
    "diversity",
    "drift_features",
    "drift_mmd",
    "drift_pixels",
    "f_mmd",
    "fid",
    "frechet_distance",
    "gaussian_of",
    "geometry_change",
    "gram",
    "harmonic_mean",
    "hyperspherical_energy",
    "hypervolume",
    "interval_of_difference",
    "interval_of_mean",
    "interval_of_nested_mean",
    "interval_of_nested_ratio",
    "interval_of_ratio",
    "kept",
    "kid",
    "load_features",
    "load_preference",
    "load_probe",
    "mmd_squared",
    "neuron_angles",
    "style_distance",
    "subject_fidelity",
    "text_alignment",
    "weight_drift",
    "weight_drift_by_layer",
]
