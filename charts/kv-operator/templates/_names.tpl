{{- define "kv-operator.labels" -}}
{{ include "kv-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "kv-operator.selector" -}}
app.kubernetes.io/name: kv-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Of what has no namespace: releases of one name in two namespaces must not meet. */}}
{{- define "kv-operator.clusterWide" -}}
{{ .Release.Name }}.{{ .Release.Namespace }}
{{- end }}

{{- define "kv-operator.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "kv-operator.pullSecretNames" -}}
{{- $names := list }}
{{- range .Values.imagePullSecrets }}
{{- $names = append $names .name }}
{{- end }}
{{- join "," $names }}
{{- end }}

{{- /* What the pods that this chart starts may do: nothing but speak. */}}
{{- define "kv-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "kv-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "kv-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ .Release.Name }}
  namespace: {{ .Release.Namespace }}
{{- end }}
