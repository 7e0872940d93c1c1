import csv
import gzip
import io
import pathlib
import tarfile

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.config import Config
from lepton_jax.data import batches, dataset, splits
from lepton_jax.errors import UserError
from lepton_jax.registry import DATASETS


def load(loss=None, **options):
  return dataset.load(Config().replace(**options).data, loss)


@settings(max_examples=40)
@given(label=st.lists(st.integers(0, 4), min_size=1, max_size=80), fraction=st.floats(0, 0.9),
       seed=st.integers(0, 5))
def test_hold_out_is_exact_disjoint_and_fair(label, fraction, seed):
  label = np.array(label)
  kept, held = splits.hold_out(label, fraction, seed)
  assert sorted([*kept, *held]) == list(range(len(label)))
  assert len(held) == round(fraction * len(label))
  for value in np.unique(label):
    size = np.sum(label == value)
    assert abs(np.sum(label[held] == value) - size * len(held) / len(label)) <= 1


@settings(max_examples=30)
@given(size=st.integers(5, 60), folds=st.integers(2, 5), seed=st.integers(0, 5))
def test_folds_partition_the_examples_evenly(size, folds, seed):
  label = np.arange(size) % 3
  held = [splits.fold(label, folds, i, seed)[1] for i in range(folds)]
  assert sorted(np.concatenate(held)) == list(range(size))
  assert max(map(len, held)) - min(map(len, held)) <= 1
  counts = np.array([[np.sum(label[h] == c) for c in range(3)] for h in held])
  assert np.all(counts.max(0) - counts.min(0) <= 1)


@pytest.mark.parametrize('name', ('digits', 'mnist5k'))
def test_embedded_sets(name):
  data = load(dataset=name)
  sizes = {'mnist5k': (3500, 500, 1000), 'digits': (1294, 144, 359)}[name]
  assert tuple(data.size(s) for s in ('train', 'validation', 'test')) == sizes
  for split in data.splits:
    counts = np.bincount(data.splits[split][1], minlength=10)
    assert counts.max() - counts.min() <= (0 if name == 'mnist5k' else 12)
  flat = [set(map(bytes, data.splits[s][0])) for s in ('train', 'validation', 'test')]
  assert not flat[0] & flat[2] and not flat[0] & flat[1]


@pytest.mark.parametrize('name', DATASETS.names())
def test_every_embedded_set_is_read_alike_twice_and_labels_are_of_its_classes(name, tmp_path):
  data, again = load(dataset=name), load(dataset=name, cache_dir=str(tmp_path))
  assert data.fingerprint == again.fingerprint
  for inputs, label in data.splits.values():
    assert len(inputs) == len(label) > 0
    assert not data.classes or 0 <= label.min() <= label.max() < len(data.classes)


def test_statistics_come_from_the_training_part_alone(tmp_path):
  rows = [(float(i), float(2 * i)) for i in range(40)]

  def write(values):
    path = tmp_path / 'table.csv'
    path.write_text('x,y\n' + ''.join(f'{x},{y}\n' for x, y in values))
    return load('mse', dataset=f'csv:{path}', target='y')
  first = write(rows)
  test_rows = {float(x) for x in first.splits['test'][0][:, 0]}
  second = write([(x * 1000, y) if x in test_rows else (x, y) for x, y in rows])
  assert (first.mean, first.std, first.target_mean) == (second.mean, second.std, second.target_mean)
  train = first.splits['train'][0]
  np.testing.assert_allclose([first.mean[0], first.std[0]], [train.mean(), train.std()], rtol=1e-6)


def test_image_moments_equal_the_direct_ones():
  data = load(dataset='digits')
  images = data.splits['train'][0].astype(np.float64)
  np.testing.assert_allclose([data.mean[0], data.std[0]], [images.mean(), images.std()], rtol=1e-6)


def test_train_limit_is_stratified():
  data = load(dataset='mnist5k', train_limit=100)
  assert list(np.bincount(data.splits['train'][1])) == [10] * 10
  with pytest.raises(UserError, match='3500'):
    load(dataset='mnist5k', train_limit=4000)


def test_batches_are_a_function_of_seed_and_step():
  inputs = np.arange(103)
  one, two = (batches.Batches(inputs, inputs, 10, seed=3) for _ in range(2))
  assert one.steps_per_epoch == 10
  assert np.array_equal(two.at(17)['inputs'], one.at(17)['inputs'])
  epochs = [np.concatenate([one.at(s)['inputs'] for s in range(e * 10, e * 10 + 10)])
            for e in range(2)]
  assert len(set(epochs[0])) == len(set(epochs[1])) == 100
  assert not np.array_equal(epochs[0], epochs[1])
  other_seed = batches.Batches(inputs, inputs, 10, seed=4)
  assert not np.array_equal(other_seed.at(0)['inputs'], one.at(0)['inputs'])
  halves = [one.at(5, rows)['inputs'] for rows in (slice(0, 5), slice(5, 10))]
  assert np.array_equal(np.concatenate(halves), one.at(5)['inputs'])


def test_a_batch_larger_than_the_data_is_an_error():
  with pytest.raises(UserError, match='only 3'):
    batches.Batches(np.arange(3), np.arange(3), 4, 0)


def test_passes_visit_every_example_once_in_equal_batches():
  inputs = np.arange(23)
  seen = list(batches.passes(inputs, 10))
  assert [len(b) for b in seen] == [10, 10, 10]
  assert np.array_equal(np.concatenate(seen)[:23], inputs) and set(seen[2]) <= set(inputs)


def test_a_damaged_cache_is_made_again(tmp_path):
  first = load(dataset='digits', cache_dir=str(tmp_path)).fingerprint
  file = next(tmp_path.glob('digits*/train-inputs.npy'))
  file.write_bytes(file.read_bytes()[:-9])
  assert load(dataset='digits', cache_dir=str(tmp_path)).fingerprint == first
  assert len(list(tmp_path.iterdir())) == 1


def test_prepared_tfds_is_read_without_tensorflow(tfds_dir, tmp_path):
  data = load(dataset='mnist', data_dir=tfds_dir, cache_dir=str(tmp_path))
  assert [data.size(s) for s in ('train', 'validation', 'test')] == [54_000, 6_000, 10_000]
  assert data.version == '3.0.1' and data.classes == tuple('0123456789')
  import sys
  assert 'tensorflow' not in sys.modules


def test_missing_data_names_the_command(tmp_path):
  with pytest.raises(UserError) as error:
    load(dataset='cifar10', data_dir=str(tmp_path))
  for words in (str(tmp_path), 'download_and_prepare', "file_format='array_record'",
                '--manual_dir'):
    assert words in str(error.value)
  with pytest.raises(UserError, match="did you mean 'mnist'"):
    load(dataset='minst', data_dir=str(tmp_path))
  with pytest.raises(UserError, match="'folder:'"):
    load(dataset='directory:/tmp')


def idx(array):
  sides = b''.join(int(n).to_bytes(4, 'big') for n in array.shape)
  return gzip.compress(bytes([0, 0, 8, array.ndim]) + sides + array.tobytes())


def test_raw_mnist_files(tmp_path):
  from lepton_jax.data import raw_files
  rng = np.random.default_rng(0)
  images = {'train': rng.integers(0, 256, (50, 28, 28), np.uint8),
            'test': rng.integers(0, 256, (20, 28, 28), np.uint8)}
  for split, (image_file, label_file) in raw_files.MNIST_FILES.items():
    (tmp_path / image_file).write_bytes(idx(images[split]))
    (tmp_path / label_file).write_bytes(idx((np.arange(len(images[split])) % 10).astype(np.uint8)))
  options = dict(dataset='fashion_mnist', manual_dir=str(tmp_path), data_dir=str(tmp_path),
                 cache_dir=str(tmp_path / 'cache'))
  data = load(**options)
  assert np.array_equal(data.splits['test'][0][..., 0], images['test'])
  assert data.classes[9] == 'Ankle boot'
  file = tmp_path / 'train-images-idx3-ubyte.gz'
  content, refused = file.read_bytes(), 0
  flipped = (content[:i] + bytes([content[i] ^ 64]) + content[i + 1:]
             for i in range(0, len(content), 997))
  for damaged in (content[:-50], *flipped):
    file.write_bytes(damaged)
    try:
      load(**options)
    except UserError as error:
      assert 'train-images-idx3-ubyte.gz is damaged' in str(error)
      refused += 1
  assert refused > 10


def test_tfrecord_is_refused_with_the_command_that_helps(tmp_path):
  folder = tmp_path / 'mnist' / '3.0.1'
  folder.mkdir(parents=True)
  (folder / 'features.json').write_text('{}')
  (folder / 'dataset_info.json').write_text('{"fileFormat": "tfrecord"}')
  with pytest.raises(UserError, match='prepared as tfrecord(.|\n)*array_record'):
    load(dataset='mnist', data_dir=str(tmp_path))


def test_raw_cifar_archive(tmp_path):
  records = np.random.default_rng(0).integers(0, 256, (20, 3073), np.uint8)
  records[:, 0] = np.arange(20) % 10
  with tarfile.open(tmp_path / 'cifar-10-binary.tar.gz', 'w:gz') as archive:
    for name in ('data_batch_1.bin', 'test_batch.bin'):
      entry = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      entry.size = records.nbytes
      archive.addfile(entry, io.BytesIO(records.tobytes()))
  data = load(dataset='cifar10', manual_dir=str(tmp_path), data_dir=str(tmp_path),
              cache_dir=str(tmp_path / 'cache'))
  image, label = data.splits['test']
  assert image.shape == (20, 32, 32, 3) and label[13] == 3
  assert image[3, 5, 7, 1] == records[3, 1 + 1024 + 5 * 32 + 7]


def make_folder(root, sizes, names=('cat', 'dog')):
  for c, name in enumerate(names):
    (root / name).mkdir(parents=True)
    for i, size in enumerate(sizes):
      PIL.Image.new('RGB', size, (100 * c, 10 * i, 50)).save(root / name / f'{i}.png')


def test_image_folder(tmp_path):
  make_folder(tmp_path / 'pets', [(20, 30)] * 10)
  data = load(dataset=f'folder:{tmp_path}/pets', image_size=16)
  assert data.classes == ('cat', 'dog') and data.input_shape == (16, 16, 3)
  assert [data.size(s) for s in ('train', 'validation', 'test')] == [14, 2, 4]
  assert set(data.splits['train'][0][data.splits['train'][1] == 1][..., 0].ravel()) == {100}
  (tmp_path / 'pets' / 'cat' / '3.png').write_bytes(b'no image')
  with pytest.raises(UserError, match='3.png cannot be read'):
    load(dataset=f'folder:{tmp_path}/pets', image_size=16)


def test_image_folder_with_splits_of_its_own(tmp_path):
  make_folder(tmp_path / 'set' / 'train', [(8, 8)] * 10)
  make_folder(tmp_path / 'set' / 'test', [(8, 8)] * 3)
  data = load(dataset=f'folder:{tmp_path}/set', image_size=8)
  assert [data.size(s) for s in ('train', 'validation', 'test')] == [18, 2, 6]


@pytest.mark.parametrize('make, words', [
    (lambda p: None, 'no such folder'), (lambda p: (p / 'x').mkdir(parents=True), 'at least 2'),
    (lambda p: [(p / n).mkdir(parents=True) for n in 'ab'], 'no image'),
])
def test_image_folder_errors(tmp_path, make, words):
  make(tmp_path / 'set')
  with pytest.raises(UserError, match=words):
    load(dataset=f'folder:{tmp_path}/set')


@pytest.mark.parametrize('content, words', [
    (b'a,b\n1,2\n3\n', 'line 3: 1 columns'), (b'a,b\n1,x\n', "line 2: b is 'x'"),
    (b'a,b\n1,nan\n', 'not a finite'), (b'a,b\n', 'at least one row'),
    (b'a,c\n1,2\n', "unknown column 'b'"), (b'a,b\n1,\xff\n', 'line 2: not UTF-8'),
])
def test_csv_errors_name_file_and_line(tmp_path, content, words):
  (tmp_path / 't.csv').write_bytes(content)
  with pytest.raises(UserError, match=words) as error:
    load('mse', dataset=f'csv:{tmp_path}/t.csv', target='b')
  assert 'target' in str(error.value) or 't.csv' in str(error.value)


def test_csv_classes(tmp_path):
  path = pathlib.Path(tmp_path) / 'iris.csv'
  with path.open('w', newline='') as file:
    csv.writer(file).writerows([('w', 'kind', 'h'), *((i, 'ab'[i % 2], -i) for i in range(20))])
  data = load(dataset=f'csv:{path}', target='kind')
  assert data.classes == ('a', 'b') and data.columns == ('w', 'h') and data.task == 'classification'


def test_each_of_several_processes_reads_what_it_feeds(tmp_path):
  """An epoch of n processes: each reads an n-th of the bytes, and all together all of them."""
  from lepton_jax.data import batches, rows
  whole = np.random.default_rng(0).integers(0, 256, (96, 5, 5, 3), np.uint8)
  np.save(tmp_path / 'a.npy', whole)
  read = []

  class Counted(np.memmap):
    def __getitem__(self, which):
      found = super().__getitem__(which)
      read.append(found.nbytes)
      return found

  on_disk = np.load(tmp_path / 'a.npy', mmap_mode='r').view(Counted)
  part = rows.take(rows.take(on_disk, np.arange(95, -1, -1)), np.arange(0, 96, 2))
  assert not read and part.shape == (48, 5, 5, 3)
  np.testing.assert_array_equal(part, whole[::-1][::2])
  label = np.arange(48)
  plain = batches.Batches(whole[::-1][::2], label, 16, seed=1)
  for count in (1, 2, 4):
    for process in range(count):
      read.clear()
      mine = slice(process * 16 // count, (process + 1) * 16 // count)
      for step in range(3):
        batch = batches.Batches(part, label, 16, seed=1).at(step, mine)
        np.testing.assert_array_equal(batch['inputs'], plain.at(step, mine)['inputs'])
      assert sum(read) == part.size // count
