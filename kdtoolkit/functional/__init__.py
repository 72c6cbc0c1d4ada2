"""The maths of the losses: pure functions of `keras.ops`.

Functions of features take vectors, tokens or maps, channels last (see `functional.positions`). The
others take logits (class scores before the softmax) with the classes on the last axis. A loss
returns one value per example: logits `(batch, classes)` give `(batch,)`, and logits
`(batch, ..., classes)`, such as segmentation or token maps, give the mean over the middle axes.

Everything stays in log space. The computation runs at least in float32: float16 and bfloat16 are
cast up first and the result is float32; float64 stays float64. Nothing is clipped, so a class at
logit -200 keeps its true gradient, and float16 logits of +-1e4 give finite values and gradients. A
logit of -inf rules its class out; where both networks rule it out, it adds nothing. (Not in
`logits_mse` and `standardise`, which need finite scores.)

The gradient flows into both arguments: stop it on the source where the source doesn't learn.
"""

from kdtoolkit.functional.attention import attention as attention
from kdtoolkit.functional.cohort import best_logits as best_logits
from kdtoolkit.functional.cohort import best_mixture as best_mixture
from kdtoolkit.functional.cohort import mean_logits as mean_logits
from kdtoolkit.functional.cohort import mean_probabilities as mean_probabilities
from kdtoolkit.functional.cohort import min_logits as min_logits
from kdtoolkit.functional.contrastive import log_normaliser as log_normaliser
from kdtoolkit.functional.contrastive import noise_contrastive as noise_contrastive
from kdtoolkit.functional.contrastive import scores as scores
from kdtoolkit.functional.divergence import batch_relation as batch_relation
from kdtoolkit.functional.divergence import class_relation as class_relation
from kdtoolkit.functional.divergence import logistic_divergence as logistic_divergence
from kdtoolkit.functional.divergence import noisy as noisy
from kdtoolkit.functional.divergence import squared_divergence as squared_divergence
from kdtoolkit.functional.logits import check_logits as check_logits
from kdtoolkit.functional.logits import check_pairs as check_pairs
from kdtoolkit.functional.logits import class_numbers as class_numbers
from kdtoolkit.functional.logits import confidence_weights as confidence_weights
from kdtoolkit.functional.logits import label_distribution as label_distribution
from kdtoolkit.functional.logits import log_probabilities as log_probabilities
from kdtoolkit.functional.logits import pearson_correlation as pearson_correlation
from kdtoolkit.functional.logits import per_example as per_example
from kdtoolkit.functional.logits import permute_non_argmax as permute_non_argmax
from kdtoolkit.functional.logits import standardise as standardise
from kdtoolkit.functional.numbers import as_numbers as as_numbers
from kdtoolkit.functional.numbers import at_least_float32 as at_least_float32
from kdtoolkit.functional.positions import arrange as arrange
from kdtoolkit.functional.positions import as_tokens as as_tokens
from kdtoolkit.functional.positions import as_vectors as as_vectors
from kdtoolkit.functional.positions import check_arrangement as check_arrangement
from kdtoolkit.functional.positions import check_features as check_features
from kdtoolkit.functional.positions import pooled as pooled
from kdtoolkit.functional.positions import resize_maps as resize_maps
from kdtoolkit.functional.relation import angle_cosines as angle_cosines
from kdtoolkit.functional.relation import cosine_similarities as cosine_similarities
from kdtoolkit.functional.relation import flow_matrix as flow_matrix
from kdtoolkit.functional.relation import gram_matrix as gram_matrix
from kdtoolkit.functional.relation import pairwise_distances as pairwise_distances
from kdtoolkit.functional.relation import unit_vectors as unit_vectors
from kdtoolkit.functional.response import (
    confidence_weighted_cross_entropy as confidence_weighted_cross_entropy,
)
from kdtoolkit.functional.response import cross_entropy as cross_entropy
from kdtoolkit.functional.response import decoupled_kd as decoupled_kd
from kdtoolkit.functional.response import hard_target_cross_entropy as hard_target_cross_entropy
from kdtoolkit.functional.response import inter_class_relation as inter_class_relation
from kdtoolkit.functional.response import intra_class_relation as intra_class_relation
from kdtoolkit.functional.response import kl_divergence as kl_divergence
from kdtoolkit.functional.response import logits_mse as logits_mse
from kdtoolkit.functional.response import mixed_target_cross_entropy as mixed_target_cross_entropy
from kdtoolkit.functional.response import soft_cross_entropy as soft_cross_entropy
