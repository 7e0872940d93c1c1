"""The tables of compression_tables.py: options that all runs share, and those of each setting."""

from experiments.tables.study import Study as Table

DENSE = 'dense'
MNIST = dict(model='lenet5', dataset='mnist', epochs=9, augment_crop=2)
CIFAR = dict(dataset='cifar10', batch_size=128, optimizer='nesterov', learning_rate=0.1,
             weight_decay=5e-3, schedule='one_cycle', augment_flip=True, augment_crop=4)
# Long enough to lose nothing to haste; what is compressed goes on from there at a lower rate.
RESIDUAL = dict(CIFAR, batch_size=256)
BEFORE = dict(epochs=60, learning_rate=0.2)
AFTER = dict(epochs=20, learning_rate=0.05)
ROWS = dict(model='lstm_classifier', epochs=20, learning_rate=3e-3)
SHAKESPEARE = dict(model='lstm_lm', dataset='tiny_shakespeare', hidden=256, batch_size=32,
                   dropout=0.2, clip_norm=1.0)
# Whole sentences are tested, on SST-2's dev part; most of the network is its table of 14,000 words.
SENTENCES = dict(model='lstm_classifier', dataset='glue/sst2', embedding=300, epochs=4, dropout=0.5,
                 augment_word_dropout=0.1, ema_decay=0.999, validation_fraction=0.02, select='last')
SCORES = ('random', 'magnitude', 'saliency', 'snip', 'grasp', 'synflow', 'movement')


def bits(weights, inputs, **options):
  return dict(quantize_weight_bits=weights, quantize_activation_bits=inputs, **options)


def scores(sparsity):
  return {DENSE: {}, **{name: dict(prune_score=name, prune_sparsity=sparsity) for name in SCORES}}


RECURRENT = {
    DENSE: {}, 'W4A8': bits(4, 8), 'W4A8, gates too': bits(4, 8, quantize_gate_bits=8),
    'W2A8': bits(2, 8, quantize_weights='lsq'),
    'ternary, A8': bits(2, 8, quantize_weights='ternary'),
    **{f'{100 * share:.0f} % sparse': dict(prune_sparsity=share) for share in (0.8, 0.9, 0.95)}}
INNER = dict(quantize_exclude='stem|head')
# Half the decay at 3 bits and a quarter at 2, which arXiv:1902.08153 found best.
LSQ = {f'W{n}A{n}{where}': bits(n, n, quantize_weights='lsq', weight_decay=decay, **exclude)
       for where, exclude in ((', but first and last', INNER), ('', {}))
       for n, decay in ((4, 5e-3), (3, 2.5e-3), (2, 1.25e-3))}
AFTERWARDS = dict(quantize_after=True, quantize_weights='lsq', quantize_inputs='mse_range',
                  quantize_calibration=2)
NARROW = dict(prune_structure='channels', prune_sparsity=0.3)
HALF = {'half the MACs': NARROW, 'half the MACs, taught': dict(NARROW, distill=1.0)}

TABLES = {
    # Scores of their papers, under one schedule and allocation.
    'scores_lenet5': Table(MNIST, scores(0.95)),
    'scores_resnet8': Table(dict(CIFAR, model='resnet8', epochs=15), scores(0.9)),
    # LSQ, arXiv:1902.08153; APoT (arXiv:1909.13144, table 2) has ResNet-20 on CIFAR-10 at 4 and 2
    # bits, first and last layer at 8.
    'lsq_resnet20': Table(RESIDUAL | AFTER | dict(model='resnet20'), {DENSE: {}, **LSQ}, BEFORE),
    'lsq_resnet8': Table(RESIDUAL | AFTER | dict(model='resnet8'), {DENSE: {}, **LSQ}, BEFORE),
    # 512 training images and no training; AdaRound, arXiv:2004.10568. Dense is the run before.
    'ptq_resnet20': Table(
        RESIDUAL | dict(model='resnet20'),
        {DENSE: dict(BEFORE, init_from=''), 'W8A8': bits(8, 8, **AFTERWARDS),
         'W4A8': bits(4, 8, **AFTERWARDS),
         'W4A8, AdaRound': bits(4, 8, **AFTERWARDS, quantize_rounding='adaround')}, BEFORE),
    # Filters by L1 (arXiv:1608.08710, table 1): ResNet-56 at 2.1 times fewer lost 0.6 points. The
    # network that they come from teaches, or not.
    'channels_resnet20': Table(RESIDUAL | AFTER | dict(model='resnet20'), {DENSE: {}, **HALF},
                               BEFORE),
    'channels_conv6': Table(RESIDUAL | AFTER | dict(model='conv6', norm='batch', epochs=10),
                            {DENSE: {}, **HALF}, BEFORE | dict(epochs=15)),
    'lstm_rows': Table(ROWS, RECURRENT),
    'lstm_sentences': Table(SENTENCES, {
        DENSE: {}, 'W4A8': bits(4, 8), '80 % sparse': dict(prune_sparsity=0.8),
        '80 % sparse, W4A8': bits(4, 8, prune_sparsity=0.8)}),
    'lstm_characters': Table(SHAKESPEARE | dict(epochs=10, learning_rate=3e-3), RECURRENT),
    # From a trained network, which teaches; what is smaller needs less dropout.
    'lstm_units': Table(SHAKESPEARE | dict(epochs=20, learning_rate=3e-3), {
        DENSE: {}, 'half the parameters': dict(
            prune_structure='channels', prune_sparsity=0.3, prune_end=0.4, distill=1.0,
            distill_temperature=1.0, dropout=0.1)}, dict(epochs=20)),
}
