{{- define "ztunnel.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "ztunnel.labels" -}}
app.kubernetes.io/name: ztunnel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The DNS name of the Service of the control plane. */}}
{{- define "ztunnel.controlPlane.name" -}}
ztunnel-control-plane.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "ztunnel.controlPlane.url" -}}
{{- if .Values.controlPlane.url -}}
{{ .Values.controlPlane.url }}
{{- else if not .Values.controlPlane.enabled -}}
{{ fail "controlPlane.enabled is false: set controlPlane.url to the URL of the control plane of the node daemons" }}
{{- else if .Values.controlPlane.clusterIP -}}
https://{{ .Values.controlPlane.clusterIP }}:15012
{{- else -}}
https://{{ include "ztunnel.controlPlane.name" . }}:15012
{{- end -}}
{{- end }}
