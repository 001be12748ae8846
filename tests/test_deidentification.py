"De-identification by the table of DICOM PS3.15: what goes, what stays, what is said"
import hashlib,warnings
from pathlib import Path
import pytest
from medlearn.data import deidentification as D,scans as S

pydicom = pytest.importorskip('pydicom')
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_has_tag,dictionary_VR,keyword_for_tag
from pydicom.tag import Tag

def sample(name): return get_testdata_file(name, download=False)

def ct(): return pydicom.dcmread(sample('CT_small.dcm'))

TEXTS = dict(AS='071Y', DA='19531117', DT='19531117071103', TM='071103.7153', DS='7153.7153', IS='1537153715', UI='1.9.7.1537153')
VRS = 'AE CS LO LT PN SH ST UC UR UT'.split() + [*TEXTS]
def vr_of(tag): return dictionary_VR(tag) if dictionary_has_tag(tag) else 'LO'
def secret(vr): return TEXTS.get(vr, 'SECRETWORD')
LISTED = [t for t in D.BASIC_PROFILE if t >> 16 > 4]

def planted(ds, tags):
    for t in tags: ds.add_new(t, vr_of(t), secret(vr_of(t)))
    return ds

def item(**fields):
    ds = pydicom.Dataset()
    for k,v in fields.items(): setattr(ds, k, v)
    return ds

def saved(ds, path):
    ds.save_as(path)
    return Path(path).read_bytes()

# The table

def test_the_table_is_that_of_the_library_that_keeps_it():
    table = pytest.importorskip('dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c')
    theirs = {}
    for kind,action in dict(X='X', Z='Z', D='D', U='U', X_Z='X/Z', X_D='X/D', Z_D='Z/D', X_Z_D='X/Z/D', X_Z_U_STAR='X/Z/U*').items():
        theirs |= {(t[0] << 16) + t[1]: action for t in getattr(table, f'{kind}_TAGS') if len(t) == 2}
    assert D.BASIC_PROFILE == theirs
    assert {t[0] for t in table.X_TAGS if len(t) > 2} == {0x5000, 0x6000}

def test_rows_of_the_table_as_the_standard_prints_them():
    rows = {'Z': 'PatientName PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID',
            'X': 'PatientTelephoneNumbers PatientAge OtherPatientIDs InstitutionAddress ImageComments IconImageSequence',
            'U': 'StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID', 'Z/D': 'PatientID ContentDate ContrastBolusAgent',
            'X/Z/D': 'InstitutionName StationName DeviceSerialNumber OperatorsName', 'X/D': 'ProtocolName SeriesDate', 'D': 'ContentSequence VerifyingObserverName',
            'X/Z': 'AcquisitionDate AcquisitionTime', 'X/Z/U*': 'ReferencedImageSequence SourceImageSequence'}
    for action,names in rows.items():
        for n in names.split(): assert D.BASIC_PROFILE[Tag(n)] == action, n
    assert len(D.BASIC_PROFILE) == 652 and not {'SOPClassUID', 'Modality', 'Rows', 'PixelSpacing'} & {keyword_for_tag(t) for t in D.BASIC_PROFILE}

# What goes

@pytest.mark.parametrize('syntax', ['1.2.840.10008.1.2.1', '1.2.840.10008.1.2'], ids=['explicit', 'implicit'])
def test_no_text_of_the_table_remains_in_the_header_or_deeper(tmp_path, syntax):
    texts = [t for t in LISTED if vr_of(t) in VRS]
    known = [t for t in texts if dictionary_has_tag(t)] if syntax.endswith('.2') and not syntax.endswith('1.2.1') else texts
    assert len(texts) > 550
    ds = planted(ct(), texts)
    ds.file_meta.TransferSyntaxUID = syntax
    deepest = planted(pydicom.Dataset(), texts)
    deepest.ReferencedImageSequence = [planted(pydicom.Dataset(), texts)]
    ds.AnatomicRegionSequence = [item(ViewCodeSequence=[deepest])]
    ds.ContentSequence = [item(ConceptNameCodeSequence=[planted(pydicom.Dataset(), texts)], TextValue='SECRETWORD', NumericValue='7153.7153', LongCodeValue='SECRETWORD')]
    before = saved(ds, tmp_path/'a.dcm')
    for word in {'SECRETWORD', *TEXTS.values()}: assert word.encode() in before, word
    after = saved(D.anonymise(pydicom.dcmread(tmp_path/'a.dcm'), 'pepper'), tmp_path/'b.dcm')
    for word in {'SECRETWORD', *TEXTS.values()}: assert word.encode() not in after, word
    again = pydicom.dcmread(tmp_path/'b.dcm')
    assert again.AnatomicRegionSequence[0].ViewCodeSequence[0].ReferencedImageSequence[0].PatientName == ''
    assert again.PatientIdentityRemoved == 'YES' and (again.pixel_array == ct().pixel_array).all()

def valid(vr):
    number = {**dict.fromkeys('FL FD'.split(), 1.5), **dict.fromkeys('SL SS SV UL US UV'.split(), 7), **dict.fromkeys('OB OW OF OD OL OV UN'.split(), b'SECRETWORDSECRET')}
    return [item(ValueType='TEXT', GraphicData=[1., 2.], PatientName='SECRETWORD')] if vr == 'SQ' else number.get(vr, secret(vr))

def test_each_action_is_done_and_leaves_a_valid_file(tmp_path, monkeypatch):
    ds = ct()
    for t in LISTED: ds.add_new(t, vr_of(t), valid(vr_of(t)))
    after = saved(D.anonymise(ds, 'pepper'), tmp_path/'b.dcm')
    assert b'SECRETWORD' not in after
    monkeypatch.setattr(pydicom.config.settings, 'reading_validation_mode', pydicom.config.RAISE)
    new = pydicom.dcmread(tmp_path/'b.dcm')
    for t in LISTED:
        if D.BASIC_PROFILE[t] == 'X': assert t not in new, hex(t)
        elif D.BASIC_PROFILE[t].endswith('Z'): assert t in new and new[t].is_empty, hex(t)
        else: assert not new[t].is_empty and (vr_of(t) in ('SQ', 'SS', 'US') or new[t].value != ds[t].value), hex(t)
    assert new.ContentSequence[0].GraphicData == [0, 0] and new.ContentSequence[0].ValueType == 'TEXT'

def test_what_no_table_lists_goes_too(tmp_path):
    ds = ct()
    ds.EvaluatorName,ds.ExpiryDate,ds.SegmentDescription,ds.RetrieveURL = 'SECRETWORD','19531117','SECRETWORD','http://SECRETWORD'
    ds.add_new(0x00189999, 'LO', 'SECRETWORD'), ds.add_new(0x00189997, 'UN', b'SECRETWORD'), ds.add_new(0x00091099, 'LO', 'SECRETWORD')
    for group in (0x5004, 0x6002): ds.add_new((group << 16) + 0x0022, 'LO', 'SECRETWORD'), ds.add_new((group << 16) + 0x3000, 'OW', b'SECRETWORD')
    ds.AnatomicRegionSequence = [item(CodeValue='T-D1100', CodingSchemeDesignator='SRT', CodeMeaning='Head', LongCodeValue='T-D1100-long')]
    ds.AnatomicRegionSequence[0].add_new(0x00091099, 'LO', 'SECRETWORD')
    after = saved(D.anonymise(ds, 'pepper'), tmp_path/'b.dcm')
    assert b'SECRETWORD' not in after and b'19531117' not in after
    code = pydicom.dcmread(tmp_path/'b.dcm').AnatomicRegionSequence[0]
    assert (code.CodeMeaning, code.LongCodeValue) == ('Head', 'T-D1100-long')

def test_what_a_list_of_the_common_fields_misses(tmp_path):
    names = """PatientTelecomInformation PatientMotherBirthName PatientBirthName OtherPatientNames ResponsiblePerson
    ResponsibleOrganization PersonTelephoneNumbers PersonAddress OrderCallbackPhoneNumber OrderCallbackTelecomInformation AdmissionID ServiceEpisodeID ServiceEpisodeDescription
    CurrentPatientLocation PatientInstitutionResidence ScheduledStationName ScheduledStationAETitle ScheduledProcedureStepDescription ScheduledProcedureStepID
    ScheduledStudyLocation FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest RequestingPhysician InsurancePlanIdentification
    AdditionalPatientHistory PatientComments ImageComments ReasonForStudy InterpretationAuthor DetectorID GantryID GeneratorID
    AcquisitionComments ContributionDescription ClinicalTrialSubjectID LastMenstrualDate DigitalSignatureDateTime""".split()
    ds = ct()
    for n in names: ds.add_new(n, dictionary_VR(n), secret(dictionary_VR(n)))
    after = saved(D.anonymise(ds, 'pepper'), tmp_path/'b.dcm')
    for word in {'SECRETWORD', *TEXTS.values()}: assert word.encode() not in after

# What stays together

def test_identifiers_of_two_files_agree_and_those_of_the_standard_are_kept():
    a,b,c = ct(),ct(),ct()
    b.SOPInstanceUID,c.StudyInstanceUID,c.PatientID = '1.9.2','1.9.3','other'
    b.SourceImageSequence = [item(ReferencedSOPClassUID=a.SOPClassUID, ReferencedSOPInstanceUID=a.SOPInstanceUID, CodingSchemeUID='1.9.6')]
    b.SOPInstanceUIDOfConcatenationSource,b.FailedSOPInstanceUIDList = a.SOPInstanceUID,[a.SOPInstanceUID, b.SOPInstanceUID]
    x,y,z = (D.anonymise(d, 'pepper') for d in (a, b, c))
    assert x.StudyInstanceUID == y.StudyInstanceUID not in (z.StudyInstanceUID, a.StudyInstanceUID)
    ref = y.SourceImageSequence[0]
    assert ref.ReferencedSOPInstanceUID == y.SOPInstanceUIDOfConcatenationSource == x.SOPInstanceUID == x.file_meta.MediaStorageSOPInstanceUID
    assert y.FailedSOPInstanceUIDList == [x.SOPInstanceUID, y.SOPInstanceUID] and len({x.SOPInstanceUID, y.SOPInstanceUID, a.SOPInstanceUID}) == 3
    assert ref.ReferencedSOPClassUID == x.SOPClassUID == a.SOPClassUID and ref.CodingSchemeUID == '1.9.6'
    assert x.PatientID == y.PatientID == 'P' + hashlib.sha256(b'pepper|1CT1').hexdigest()[:12] != z.PatientID
    assert D.anonymise(a, 'salt').StudyInstanceUID != x.StudyInstanceUID

# What is said

def test_the_flag_names_its_profile():
    new = D.anonymise(ct(), 'pepper')
    assert new.PatientIdentityRemoved == 'YES' and new.LongitudinalTemporalInformationModified == 'REMOVED' and '2026c' in new.DeidentificationMethod
    code = new.DeidentificationMethodCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ('113100', 'DCM', 'Basic Application Confidentiality Profile')

@pytest.mark.parametrize('fields,said', [(dict(BurnedInAnnotation='YES'), 'burnt'), (dict(Modality='US'), 'burnt'), (dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.7.2'), 'burnt'),
    (dict(RecognizableVisualFeatures='YES', BurnedInAnnotation='NO'), 'a face')])
def test_the_flag_is_not_set_where_a_person_has_to_look(fields, said):
    ds = ct()
    ds.PatientIdentityRemoved,ds.DeidentificationMethod = 'YES','by hand'
    ds.DeidentificationMethodCodeSequence = [item(CodeValue='113100')]
    for k,v in fields.items(): setattr(ds, k, v)
    with pytest.warns(UserWarning, match=said): new = D.anonymise(ds, 'pepper')
    assert new.PatientIdentityRemoved == 'NO' and 'DeidentificationMethod' not in new and 'DeidentificationMethodCodeSequence' not in new
    assert new.PatientName == ''

# Real files

FILES = sorted(p.name for p in Path(sample('CT_small.dcm')).parent.glob('*.dcm'))
@pytest.mark.parametrize('name', FILES)
def test_every_sample_is_cleaned_and_can_be_read(name, tmp_path):
    try:
        ds = pydicom.dcmread(sample(name))
        str(ds)
    except Exception: pytest.skip('cannot be read before')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        new = D.anonymise(ds, 'pepper')
        new.save_as(tmp_path/'b.dcm')
        again = pydicom.dcmread(tmp_path/'b.dcm')
    elements = [e for e in again.iterall()]
    assert not [e for e in elements if e.tag.is_private]
    assert {str(e.value) for e in elements if e.VR == 'PN'} <= {'', 'REMOVED'}
    assert {str(e.value)[:8] for e in elements if e.VR in ('DA', 'DT')} <= {'', '19000101'}
    if 'PixelData' in ds: assert again.PixelData == ds.PixelData
    if ds.get('SOPInstanceUID'): assert again.SOPInstanceUID != ds.SOPInstanceUID

def test_nothing_identifying_remains(tmp_path):
    ct = sample('CT_small.dcm')
    hu,ds = S.read_dicom(ct)
    before = ds.to_json()
    ref = pydicom.Dataset()
    ref.ReferencedSOPClassUID,ref.ReferencedSOPInstanceUID = ds.SOPClassUID,ds.SOPInstanceUID
    ref.OperatorsName,ref.ContentDate = 'Nested^Operator','19991231'
    ds.ReferencedImageSequence,ds.BurnedInAnnotation,ds.OperatorsName = [ref],'NO',['Doe^Jane', 'Roe^Richard']
    clean = D.anonymise(ds, 'pepper')
    clean.save_as(tmp_path/'clean.dcm')
    raw = (tmp_path/'clean.dcm').read_bytes()
    for text in ('CompressedSamples', '1CT1', 'ABCD1234', '1234ABCD', 'JFK', 'CT01_OC0', 'CLUNIE1', '20040119', '19970430', '1.3.6.1.4.1.5962.1',
                 'Nested', '19991231', 'Doe', 'Roe', 'GEMS', 'Uncompressed'): assert text.encode() not in raw, text
    hu2,again = S.read_dicom(tmp_path/'clean.dcm')
    assert (hu2 == hu).all() and not any(e.tag.is_private for e in again)
    assert again.ReferencedImageSequence[0].ReferencedSOPInstanceUID == again.SOPInstanceUID == again.file_meta.MediaStorageSOPInstanceUID
    assert again.SOPClassUID == ds.SOPClassUID and again.PatientIdentityRemoved == 'YES'
    assert D.anonymise(ds, 'pepper').PatientID == clean.PatientID != D.anonymise(ds, 'salt').PatientID
    assert pydicom.dcmread(ct).to_json() == before and ds.PatientID == '1CT1'
    with pytest.raises(ValueError, match='salt'): D.anonymise(ds, '')

def test_burnt_in_text_is_warned_about():
    _,ds = S.read_dicom(sample('CT_small.dcm'))
    ds.BurnedInAnnotation = 'YES'
    with pytest.warns(UserWarning, match='burnt'): D.anonymise(ds, 'x')
    del ds.BurnedInAnnotation
    ds.Modality = 'US'
    with pytest.warns(UserWarning, match='burnt'): D.anonymise(ds, 'x')
