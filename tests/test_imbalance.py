"""Class weights and decision thresholds."""

import numpy as np
import pytest

from lepton_jax import assemble, objective


def test_balanced_weights_are_inverse_frequencies(small):
  data = assemble.load_data(small)
  weights = objective.class_weights(small.replace(class_weights='balanced'), data)
  label = data.splits['train'][1]
  assert np.mean(weights[label]) == pytest.approx(1)
  assert np.all(np.abs(weights * np.bincount(label) - len(label) / 10) < 1e-3)


def test_threshold_is_chosen_for_the_best_f1():
  from lepton_jax import metrics
  positive, label = np.array([0.1, 0.2, 0.3, 0.4, 0.9]), np.array([0, 0, 1, 1, 1])
  threshold = metrics.best_threshold(positive, label)
  assert threshold == 0.3 and metrics.at_threshold(positive, label, threshold)['f1'] == 1
