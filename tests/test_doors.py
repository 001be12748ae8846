"What lies at a path, what its dataset.toml says, and which chapters take it"
import json, subprocess, sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from medlearn.data import doors as D
from medlearn.data.folders import picture_folder
from medlearn.kit import fetch as F, runner
from medlearn.kit import cards as Cards
from medlearn.kit import catalog as Catalog
from medlearn.kit.cards import DataError

root = Path(__file__).parent.parent
SHARED = root.parent/'shared'/'data'
rng = np.random.default_rng(0)

def noise(*shape): return rng.integers(0, 256, shape, np.uint8)

@pytest.fixture
def pictures(tmp_path):
    at = tmp_path/'pictures'
    for c in 'ab':
        (at/c).mkdir(parents=True)
        for i in range(10): Image.fromarray(noise(16, 16)).save(at/c/f'P{i}_{c}.png')
    return at

def pairs(at, names=('images', 'masks'), ending=''):
    for d in names: (at/d).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(noise(16, 16)).save(at/names[0]/f'P{i}.png')
        Image.fromarray((noise(16, 16) > 128)*np.uint8(1)).save(at/names[1]/f'P{i}{ending}.png')
    return at

def volumes(at):
    nib = pytest.importorskip('nibabel')
    for d in ('imagesTr', 'labelsTr'): (at/d).mkdir(parents=True)
    for i in range(6):
        for d,x in (('imagesTr', noise(8, 8, 6)), ('labelsTr', (noise(8, 8, 6) > 128)*np.uint8(1))): nib.save(nib.Nifti1Image(x, np.eye(4)), at/d/f'v{i}.nii.gz')
    return at

def voc(at):
    for d in ('Annotations', 'JPEGImages'): (at/d).mkdir(parents=True)
    for i in range(6):
        Image.fromarray(noise(20, 20)).save(at/'JPEGImages'/f'P{i}.png')
        (at/'Annotations'/f'P{i}.xml').write_text('<a><object><name>cell</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></a>')
    return at

def coco(at):
    at.mkdir()
    for i in range(6): Image.fromarray(noise(20, 20)).save(at/f'P{i}.png')
    (at/'boxes.json').write_text(json.dumps(dict(images=[dict(id=i, file_name=f'P{i}.png', width=20, height=20) for i in range(6)], categories=[dict(id=1, name='cell')],
                                                 annotations=[dict(id=i, image_id=i, category_id=1, bbox=[2, 2, 8, 8]) for i in range(6)])))
    return at/'boxes.json'

def medmnist(at, shape=(8, 8)):
    np.savez(at, **{f'{s}_{k}': noise(8, *shape) if k == 'images' else np.arange(8)%2 for s in ('train', 'val', 'test') for k in ('images', 'labels')})
    return at

def records(at):
    at.mkdir()
    rows = [(f'p{i}', d, v, 1.5 + i + d) for i in range(12) for d in (0, 1, 2) for v in ('crp', 'ldh')]
    pd.DataFrame(rows, columns=['id', 'time', 'variable', 'value']).to_csv(at/'measurements.csv', index=False)
    pd.DataFrame(dict(id=[f'p{i}' for i in range(12)], label=['lived', 'died']*6)).to_csv(at/'outcomes.csv', index=False)
    return at

def reports(at):
    pd.DataFrame(dict(id=range(12), text=[f'report number {i} of a chest' for i in range(12)], label=['a', 'b']*6)).to_csv(at, index=False)
    return at

def entities(at):
    at.mkdir()
    for f in ('train', 'devel', 'test'): (at/f'{f}.tsv').write_text('the\tO\nflu\tB-Disease\n\nno\tO\n')
    return at

def joint(at):
    at.mkdir()
    ids = [f'p{i}' for i in range(18)]
    np.savez(at/'images.npz', ids=np.array(ids), ct=noise(18, 8, 8))
    pd.DataFrame(dict(id=ids, label=['a', 'b']*9, crp=range(18))).to_csv(at/'table.csv', index=False)
    return at

def traces(at):
    pd.DataFrame(dict(id=range(40), label=['a', 'b']*20, patient=[f'p{i//2}' for i in range(40)]) | {str(i): rng.normal(size=40).round(3) for i in range(50)}).to_csv(at, index=False)
    at.with_suffix('.toml').write_text('rate = 100\nunit = "mV"')
    return at

def record(at):
    wfdb = pytest.importorskip('wfdb')
    at.mkdir()
    x = np.sin(np.linspace(0, 200, 3600))[:, None]
    wfdb.wrsamp('r1', 360, ['mV'], ['II'], p_signal=x, fmt=['16'], write_dir=str(at))
    wfdb.wrann('r1', 'atr', np.array([100, 500, 900]), np.array(['N', 'V', 'N']), fs=360, write_dir=str(at))
    return at/'r1'

def molecules(at):
    pytest.importorskip('rdkit')
    pd.DataFrame(dict(smiles=[f'{"C"*i}O' for i in range(1, 9)], active=[0, 1]*4)).to_csv(at, index=False)
    return at

def dna(at):
    at.mkdir()
    letters = rng.choice(list('ACGT'), (2, 12, 60))
    for name,rows in zip(('pos', 'neg'), letters): (at/f'{name}.fa').write_text(''.join(f'>{name}{i}\n{"".join(r)}\n' for i,r in enumerate(rows)))
    return at

def profiles(at):
    x = pd.DataFrame(rng.normal(8, 2, (20, 12)).round(3), columns=[f'GENE{i}' for i in range(12)])
    x.insert(0, 'label', ['a', 'b']*10)
    x.T.rename_axis('gene').rename(columns=lambda i: f's{i}').to_csv(at, sep='\t')
    return at

made = {'images': lambda p: medmnist(p/'a.npz'), 'mask_folder': lambda p: pairs(p/'m'), 'volumes': lambda p: volumes(p/'v'), 'voc': lambda p: voc(p/'voc'),
        'coco': lambda p: coco(p/'coco'), 'records': lambda p: records(p/'rec'), 'reports': lambda p: reports(p/'rep.csv'), 'entities': lambda p: entities(p/'ner'), 'joint': lambda p: joint(p/'j'), 'traces': lambda p: traces(p/'t.csv'), 'wfdb': lambda p: record(p/'w'),
        'molecules': lambda p: molecules(p/'m.csv'), 'dna': lambda p: dna(p/'fa'), 'profiles': lambda p: profiles(p/'e.tsv')}

@pytest.mark.parametrize('kind', made)
def test_each_kind_is_known_read_and_counted(tmp_path, kind):
    at = made[kind](tmp_path)
    assert D.kind_of(at) == kind
    found = D.check(at)
    assert not isinstance(found, D.NotRead), found
    assert found['this is'] == D.kinds[kind].what and str(at) in found['chapters that take it'] and found['read by'].startswith('medlearn.data.')
    want = dict(images=('splits', 'train 8, valid 8, test 8'), mask_folder=('pictures', '8 of 16×16'), volumes=('pictures', '6 of 6×8×8'), voc=('boxes', 'cell 6; 0 pictures without'),
                coco=('boxes', 'cell 6; 0 pictures without'), records=('outcomes', 'lived 6 (50%), died 6 (50%)'), reports=('classes', 'a 6, b 6'),
                entities=('entities', 'Disease 3'), traces=('patients', '20'), joint=('modalities', 'ct 8×8, table 1'), wfdb=('beats', 'N 2, V 1'),
                molecules=('active', '1 in 4 of 8 (50.0%)'), dna=('labels', 'neg 12, pos 12'), profiles=('samples', '20'))[kind]
    assert found[want[0]] == want[1]

def test_volumes_in_the_layout_of_medmnist_go_elsewhere(tmp_path):
    found = D.check(medmnist(tmp_path/'v.npz', (6, 8, 8)))
    assert 'imaging/volumes' in found['chapters that take it'] and 'classification' not in found['chapters that take it']

def test_every_chapter_that_is_named_has_the_parameter():
    among = {n: Catalog.describe(p) for n,p in Catalog.chapters().items()}
    for name,said in among.items():
        assert said['takes'].keys() <= D.kinds.keys(), f'{name} takes what nobody reads: {said["takes"].keys() - D.kinds.keys()}'
        assert {*said['takes'].values()} <= said['parameters'].keys(), f'{name} has no such parameter: {said["takes"]}'
    assert D.kinds.keys() == {k for said in among.values() for k in said['takes']}, 'a kind that no chapter takes'

def test_every_reader_has_options_that_are_explained():
    for name in D.kinds:
        table = D.options(name)
        assert all(table.meaning.astype(str).str.len() > 3), name

# dataset.toml

def test_what_the_files_do_not_say(pictures):
    (pictures/'dataset.toml').write_text("patient = '(P\\d+)_'\npositive = 'a'\nside = 12\nfit = 'pad'\n")
    data = D.images_from(pictures, side=20)
    same = picture_folder(pictures, patient=r'(P\d+)_', positive='a', side=12, fit='pad')
    assert (data.images == same.images).all() and data.classes == ['b', 'a'] and (data.groups == same.groups).all() and data.images.shape[1] == 12
    assert ('dataset.toml', Cards.digest_of(pictures/'dataset.toml')) in F.seen
    assert D.check(pictures)['dataset.toml says'].startswith("patient = ")

@pytest.mark.parametrize('text,said', [
    ('pateint = "x"', "'pateint' is no option of a folder of pictures with labels. Did you mean patient?"), ('qqq = 1', 'There are: side, fit'),
    ('side = "large"', "side is 'large', it wants a whole number"), ('side = true', 'side is True, it wants a whole number'), ('side = 1.5', 'it wants a whole number'),
    ('drop_bad = 1', 'drop_bad is 1, it wants true or false'), ('level_width = 3', 'level_width is 3, it wants a list'), ('side 64', 'cannot be read as TOML'), ('seed = 3', "'seed' is no option")])
def test_unknown_or_wrong_options_are_refused(pictures, text, said):
    (pictures/'dataset.toml').write_text(text)
    with pytest.raises(DataError, match='dataset.toml.*' + said.replace('(', r'\(')): D.images_from(pictures)

def test_a_file_has_its_own(tmp_path):
    medmnist(tmp_path/'one.npz'), medmnist(tmp_path/'two.npz')
    (tmp_path/'one.toml').write_text('classes = ["well", "ill"]\npositive = "well"')
    assert D.images_from(tmp_path/'one.npz').classes == ['ill', 'well'] and D.images_from(tmp_path/'two.npz').classes == ['0', '1']

def test_classes_by_number_and_endings(tmp_path):
    at = pairs(tmp_path/'m', ('images', 'labels'), '_seg')
    for f in (at/'labels').iterdir(): Image.fromarray(np.asarray(Image.open(f))*4).save(f)
    with pytest.raises(DataError, match='is in one of'): D.scans_from(at)
    (at/'dataset.toml').write_text('ending = "_seg"\n[classes]\n0 = "background"\n4 = "tumour"\n')
    data = D.scans_from(at, seed=3)
    assert data.classes == ['background', 'tumour'] and set(np.unique(data.masks)) == {0, 1}

def test_codes_and_outcomes_that_are_not_known(tmp_path):
    at = records(tmp_path/'rec')
    df = pd.read_csv(at/'measurements.csv')
    df.loc[3, 'value'] = -9
    df.to_csv(at/'measurements.csv', index=False)
    out = pd.read_csv(at/'outcomes.csv')
    out.loc[2, 'label'] = 'unknown'
    out.to_csv(at/'outcomes.csv', index=False)
    (at/'dataset.toml').write_text('missing = [-9]')
    with pytest.raises(DataError, match="outcomes.csv: row 4: the label 'unknown'"): D.records_from(at)
    (at/'dataset.toml').write_text('missing = [-9]\nunknown = "leave out"')
    assert len(D.records_from(at)) == 11 and D.records_from(at).counts['coded as missing'] == 1

def test_the_chapters_own_choices_give_way_but_not_its_seed(tmp_path):
    at = voc(tmp_path/'voc')
    assert D.scans_from(at, shape=(10, 10), drop_bad=True, seed=1).images.shape[1:3] == (10, 10)
    (at/'dataset.toml').write_text('shape = [12, 12]')
    assert D.scans_from(at, shape=(10, 10)).images.shape[1:3] == (12, 12)

def test_pictures_with_numbers_in_their_table_go_to_fusion(tmp_path):
    for i in range(18): Image.fromarray(noise(12, 12)).save(tmp_path/f'x{i}.png')
    rows = pd.DataFrame(dict(file=[f'x{i}.png' for i in range(18)], label=['a', 'b']*9, patient=[f'p{i//2}' for i in range(18)], age=range(40, 58), sex=['f', 'm']*9))
    rows.sample(frac=1, random_state=0).to_csv(tmp_path/'labels.csv', index=False)
    data = D.joint_from(tmp_path, side=12, seed=1)
    assert data.columns == dict(table=['age']) and data.parts['pictures'].shape == (18, 12, 12)
    want = {x.tobytes(): (a, l) for x,a,l in zip([np.asarray(Image.open(tmp_path/f)) for f in rows.file], rows.age, rows.label)}
    assert all(want[x.tobytes()] == (a, data.classes[y]) for x,a,y in zip(data.parts['pictures'], data.parts['table'][:, 0], data.labels))
    assert 'imaging/fusion' in D.check(tmp_path)['chapters that take it']
    with pytest.raises(DataError, match="column 'sex' of labels.csv holds text, such as '[fm]'"): import_joint(tmp_path, ['age', 'sex'])
    rows.loc[3, 'age'] = np.nan
    rows.to_csv(tmp_path/'labels.csv', index=False)
    with pytest.raises(DataError, match="column 'age' of table has no number in row 3, x3.png"): D.joint_from(tmp_path)

def import_joint(folder, columns):
    from medlearn.data.joint import pictures_and_table
    return pictures_and_table(folder, columns=columns)

# Wrong doors

def test_a_wrong_door_names_the_right_one(tmp_path):
    with pytest.raises(DataError, match='boxes, as Pascal VOC writes them: data/boxes, imaging/detection takes it'): D.images_from(voc(tmp_path/'voc'))
    with pytest.raises(DataError, match='measurements and outcomes.*sequences/records'): D.scans_from(records(tmp_path/'rec'))
    with pytest.raises(DataError, match='nowhere is not there'): D.images_from('/nowhere')
    with pytest.raises(DataError, match='nafld'): D.records_from('naflt')

@pytest.mark.parametrize('name,said', [('a.nii.gz', 'is one scan'), ('a.docx', 'of a kind that no chapter reads')])
def test_files_that_no_chapter_takes(tmp_path, name, said):
    (tmp_path/name).write_bytes(b'x')
    found = D.check(tmp_path/name)
    assert isinstance(found, D.NotRead) and said in found['REFUSED']

def test_folders_that_no_chapter_takes(tmp_path):
    (tmp_path/'molecules.csv').write_text('a,b\n')
    with pytest.raises(DataError, match='holds nothing that a chapter reads: molecules.csv'): D.kind_of(tmp_path)
    at = record(tmp_path/'w')
    assert D.kind_of(at.parent) == 'wfdb_folder'

def test_check_says_what_is_refused_and_what_remains(pictures):
    (pictures/'a'/'P99_a.png').write_bytes(b'x')
    found = D.check(pictures)
    assert isinstance(found, D.NotRead) and 'P99_a.png cannot be read' in found['REFUSED'] and found['pictures'].startswith('20 of') and 'drop_bad' in str(list(found))

def test_the_command(pictures, tmp_path):
    def medlearn(*words): return subprocess.run([Path(sys.executable).with_name('medlearn'), *words], capture_output=True, text=True)
    good,bad = medlearn('data', 'check', str(pictures), '--json'),medlearn('data', 'check', str(tmp_path/'none'))
    assert good.returncode == 0 and json.loads(good.stdout)['classes'] == 'a 10, b 10'
    assert bad.returncode == 1 and 'is not there' in bad.stdout
    assert 'counts as positive' in medlearn('data', 'check', str(pictures)).stdout

def test_readers_wait_until_they_are_needed():
    code = "import sys, medlearn.data.doors; print([m for m in ('medlearn.data.events', 'medlearn.data.annotations', 'medlearn.data.signals', 'torch', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

shared = ['pbc_blood_cells', 'pneumoniamnist/pneumoniamnist.npz', 'dsb2018_nuclei/dsb2018_256_gray.npz', 'sunnybrook_cardiac', 'mimic3_demo', 'mitdb_record100/100', 'ner/NCBI-disease-IOB']

@pytest.mark.parametrize('path', shared)
def test_real_sets_as_they_lie(path):
    if not SHARED.is_dir(): pytest.skip(f'{SHARED} is absent')
    found = D.check(SHARED/path)
    assert not isinstance(found, D.NotRead) and found['chapters that take it']
