"""Sets whole sentences of SST-2's training part aside, to choose settings without the dev part.

Question: which settings will do well on sentences of which no phrase was trained on?
Papers: SST (Socher et al. 2013), whose training part holds sentences and their phrases, so that a
  random tenth of it says little: its phrases have been trained on as parts of others. GLUE
  (arXiv:1804.07461) has the splits.
Command: ./launch.sh sst2_held_out --data_dir=DIR --output=sst2
Expected: sst2/train.tsv and test.tsv, for --dataset=csv:sst2 --text_column=sentence --target=label
Cost: half a minute.

With --whole the training part has whole sentences alone: a small CSV of sentences, on which
compression of a network with a large word table is tried.

experiments/results/sst2_settings.csv has what 24 settings scored on these sentences, each trained
once, two of them with more seeds, by ./launch.sh train --dataset=csv:sst2 --text_column=sentence
--target=label --select=last and its flags.
"""

import pathlib
import sys

from absl import flags as absl_flags

from lepton_jax import flags

FLAGS = absl_flags.FLAGS
OWN = ('data_dir', 'output', 'sentences', 'seed', 'whole')


def main(config):
  del config
  import numpy as np

  from lepton_jax.config import Data
  from lepton_jax.data import dataset, tfds_sets
  source = tfds_sets.read('glue/sst2', FLAGS.data_dir, '', dataset.cache_root(Data()), 0)
  texts, label = source.splits['train']
  words = [tuple(text.split()) for text in texts]
  inside = set().union(*(phrases(w) - {w} for w in words))
  whole = np.array([i for i, w in enumerate(words) if w not in inside])
  held = np.random.default_rng(FLAGS.seed).choice(whole, FLAGS.sentences, replace=False)
  seen = set().union(*(phrases(words[i]) for i in held))
  kept = [i for i in (whole if FLAGS.whole else range(len(words))) if words[i] not in seen]
  folder = pathlib.Path(FLAGS.output)
  folder.mkdir(parents=True, exist_ok=True)
  for name, rows in (('train', kept), ('test', held)):
    lines = ['sentence\tlabel', *(f'{texts[i].strip()}\t{source.classes[label[i]]}' for i in rows)]
    (folder / f'{name}.tsv').write_text('\n'.join(lines) + '\n', encoding='utf-8')
  print(f'{folder}: {len(kept):,} of {len(words):,} phrases to train on, {len(held):,} sentences '
        f'held out')
  return 0


def phrases(words):
  """Every run of words within a tuple of words, itself included."""
  return {words[a:b] for a in range(len(words)) for b in range(a + 1, len(words) + 1)}


if __name__ == '__main__':
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('output', 'sst2', 'folder to write train.tsv and test.tsv to')
  absl_flags.DEFINE_integer('sentences', 1500, 'sentences held out')
  absl_flags.DEFINE_integer('seed', 0, 'which ones')
  absl_flags.DEFINE_bool('whole', False, 'train on whole sentences only, not on their phrases')
  sys.exit(flags.run(main, __doc__, OWN))
