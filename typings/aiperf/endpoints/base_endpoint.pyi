from aiperf.common.models import ModelEndpointInfo, ParsedResponse, RequestRecord

class BaseEndpoint:
    model_endpoint: ModelEndpointInfo
    def extract_response_data(self, record: RequestRecord) -> list[ParsedResponse]: ...
