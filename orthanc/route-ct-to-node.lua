-- Sends every stable CT series to the modality "node" of orthanc.json.
--
-- No loop can arise: only the SOP classes below go out, so no SEG, SR or secondary capture; and neither anything made by
-- the node nor anything that came from it. What the node shall do with a series is decided by its rules, not here: this
-- script holds back only what can never be segmented (localizers).

local NODE = 'node'
local NODE_MANUFACTURER = 'dicom-node project'

-- A series that the node refuses for good must not be sent for ever: after this long a person has to send it again.
local OFFERED_FOR_S = 7 * 24 * 3600

local CT_CLASSES = {
  ['1.2.840.10008.5.1.4.1.1.2'] = 'CT Image Storage',
  ['1.2.840.10008.5.1.4.1.1.2.1'] = 'Enhanced CT Image Storage',
  ['1.2.840.10008.5.1.4.1.1.2.2'] = 'Legacy Converted Enhanced CT Image Storage',
}

local function modalityAeTitle(name)
  local modality = ParseJson(RestApiGet('/modalities/' .. name .. '/configuration'))
  return modality['AET'] or modality[1]
end

local function sendingAeTitle(instanceId)
  local available = ParseJson(RestApiGet('/instances/' .. instanceId .. '/metadata'))
  for _, name in ipairs(available) do
    if name == 'RemoteAET' then
      return RestApiGet('/instances/' .. instanceId .. '/metadata/RemoteAET')
    end
  end
  return nil -- came by REST or DICOMweb
end

-- nil when the series shall go to the node, else the reason why not
local function reasonToKeep(seriesId)
  local instances = ParseJson(RestApiGet('/series/' .. seriesId))['Instances']
  local instance = instances[1]
  local tags = ParseJson(RestApiGet('/instances/' .. instance .. '/simplified-tags'))
  if CT_CLASSES[tags['SOPClassUID'] or ''] == nil then
    return 'not CT'
  end
  if string.find(string.upper(tags['ImageType'] or ''), 'LOCALIZER', 1, true) then
    return 'localizer'
  end
  if tags['Manufacturer'] == NODE_MANUFACTURER then
    return 'made by the node'
  end
  if sendingAeTitle(instance) == modalityAeTitle(NODE) then
    return 'came from the node'
  end
  return nil
end

-- The node was away: offer it again what could not be sent.
local function offerAgain()
  local oldest = os.date('!%Y%m%dT%H%M%S', os.time() - OFFERED_FOR_S) -- as CreationTime is written, in UTC
  for _, job in ipairs(ParseJson(RestApiGet('/jobs?expand'))) do
    if job['Type'] == 'DicomModalityStore' and job['State'] == 'Failure'
        and job['Content']['RemoteAet'] == modalityAeTitle(NODE) and job['CreationTime'] > oldest then
      RestApiPost('/jobs/' .. job['ID'] .. '/resubmit', '')
      print('job ' .. job['ID'] .. ': offered to ' .. NODE .. ' again')
    end
  end
end

function OnStableSeries(seriesId, tags, metadata)
  local reason = reasonToKeep(seriesId)
  if reason ~= nil then
    print('series ' .. seriesId .. ': stays here, ' .. reason)
    return
  end
  -- an asynchronous job: listed under /jobs and kept over restarts, so that it can be offered again
  RestApiPost('/modalities/' .. NODE .. '/store', DumpJson({ Resources = { seriesId }, Asynchronous = true }))
  print('series ' .. seriesId .. ': sent to ' .. NODE)
  offerAgain()
end

-- Called every LuaHeartBeatPeriod seconds by Orthanc 1.11.1 and newer. Debian 12's 1.10.1 has no such call: there the
-- next stable CT series takes the left ones along.
function OnHeartBeat()
  offerAgain()
end
